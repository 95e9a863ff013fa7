package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/config"
)

// makeSure makes the client unless it exists, and otherwise sets what is given. The same command again does nothing.
func (m *making) makeSure(cmd *cobra.Command, c *config.Config, name string) error {
	if m.handing.Out == "" {
		return cli.Misuse(errors.New("--ensure needs --out"), "--out FILE: a client that is made has its token written there")
	}
	var span enrol.Overlap
	if span.Set(m.terms.Expires) == nil {
		return cli.Misuse(fmt.Errorf("--expires %s would be another time with each run", m.terms.Expires),
			"with --ensure, give a day or a time: 2027-01-31")
	}
	clients := filepath.Join(c.Dir, config.ClientsDir)
	client, err := keys.ReadClient(filepath.Join(clients, name+keys.Suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return m.makeNew(cmd, c, name)
	}
	if err != nil {
		return denied(err)
	}
	if !client.Revoked.IsZero() {
		return taken(fmt.Errorf("%s %w", name, place.ErrExists), clients, name)
	}
	client, changed, err := keys.SetClient(clients, name, m.settings(cmd, time.Now()), m.setting.dry, nil)
	if err != nil {
		return unset(err, name)
	}
	return m.setting.tell(cmd, c.Dir, client, changed)
}

// makeNew makes the client and reports it.
func (m *making) makeNew(cmd *cobra.Command, c *config.Config, name string) error {
	if !m.setting.dry {
		if err := m.make(cmd, c, name); err != nil {
			return err
		}
	}
	return m.setting.print(cmd, change{Changed: true, Created: true, Client: name, Keys: []string{}})
}

// settings returns what the flags say as settings of a client's file. What no flag names stays as it is.
func (m *making) settings(cmd *cobra.Command, now time.Time) []string {
	settings := []string{"allow=" + strings.Join(m.allow, ",")}
	add := func(flag, key, value string) {
		if cmd.Flags().Changed(flag) {
			settings = append(settings, key+"="+value)
		}
	}
	add("when", "when", strings.Join(m.terms.When, ","))
	add("from", "from", strings.Join(m.terms.From, ","))
	add("widest4", "widest4", fmt.Sprint(m.terms.Widest4))
	add("widest6", "widest6", fmt.Sprint(m.terms.Widest6))
	add("delegate", "delegate", strings.Join(m.terms.Delegate, ","))
	add("max-for", "max_for", m.terms.MaxFor)
	add("require-source", "require_source", fmt.Sprint(m.terms.RequireSource))
	expires := m.terms.Expires
	if end, err := enrol.ParseExpires(expires, now); err == nil {
		expires = end.Format(time.RFC3339)
	}
	add("expires", "expires", expires)
	return settings
}
