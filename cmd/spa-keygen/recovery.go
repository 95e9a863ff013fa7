package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/config"
	"sallyport/spa/recovery"
)

// usesFlags say that a client gets a recovery key.
type usesFlags struct {
	on   bool
	uses int
}

const defaultUses = 3

func (u *usesFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&u.on, "recovery", false, "make a key that is good for a few uses, and print a page to keep on "+
		"paper")
	cmd.Flags().IntVar(&u.uses, "uses", defaultUses, "with --recovery: `NUMBER` of uses")
	cmd.MarkFlagsMutuallyExclusive("recovery", "ensure")
	cmd.MarkFlagsMutuallyExclusive("recovery", "qr") // the page has the code
}

func (u *usesFlags) check(cmd *cobra.Command) error {
	switch {
	case cmd.Flags().Changed("uses") && !u.on:
		return cli.Misuse(errors.New("--uses needs --recovery"), "add --recovery, or leave out --uses")
	case u.uses < 1 || u.uses > keys.MaxUses:
		return cli.Misuse(fmt.Errorf("--uses %d: must be 1 to %d", u.uses, keys.MaxUses), "")
	}
	return nil
}

// number returns the number of uses; 0: no limit.
func (u *usesFlags) number() int {
	if !u.on {
		return 0
	}
	return u.uses
}

// forRecovery changes what a rotation does if the client has a recovery key: a page that is replaced is of no more use.
func (r *rotation) forRecovery(cmd *cobra.Command, c *keys.Client) error {
	if c.Recovery == 0 {
		return nil
	}
	if r.handing.QR {
		return cli.Misuse(fmt.Errorf("%s is a recovery client: its page has the QR code", c.Name), "leave out --qr")
	}
	if !cmd.Flags().Changed("overlap") {
		r.overlap = 0
	}
	return nil
}

// countUses is addUses for a caller that has not locked the clients.
func countUses(c *config.Config, client *keys.Client) error {
	unlock, err := place.Lock(filepath.Join(c.Dir, config.ClientsDir))
	if err != nil {
		return err
	}
	defer unlock()
	return addUses(c, client)
}

// addUses records the uses of a recovery client's new key, before its file has that key: the server refuses a recovery
// key without a record.
func addUses(c *config.Config, client *keys.Client) error {
	if client.Recovery == 0 {
		return nil
	}
	if err := recovery.Add(usesFile(c.Dir), client.ID, client.Recovery); err != nil {
		return fmt.Errorf("recording the uses of the key: %w", err)
	}
	return nil
}

// usesFile returns the file that counts uses.
func usesFile(dir string) string {
	state, err := config.StateDir(dir)
	if err != nil {
		state = dir
	}
	return filepath.Join(state, config.RecoveryFile)
}

// uses is what is left of a recovery key.
type uses struct {
	Uses int        `json:"uses"`
	Left *int       `json:"left"` // null: unknown, and the server refuses the key
	Last *time.Time `json:"last,omitempty"`
}

// String says what is left.
func (u *uses) String() string {
	switch {
	case u.Left == nil:
		return "the count of its uses is lost"
	case u.Last == nil:
		return fmt.Sprintf("%d of %d uses left", *u.Left, u.Uses)
	}
	return fmt.Sprintf("%d of %d uses left, the last was at %s", *u.Left, u.Uses, moment(u.Last))
}

// usesOf has the counts by key.
type usesOf map[keys.ID]recovery.Count

// readUses returns the counts. What cannot be read is unknown.
func readUses(dir string) usesOf {
	counts, _ := recovery.Read(usesFile(dir))
	found := make(usesOf)
	for _, c := range counts {
		found[c.ID] = c
	}
	return found
}

// of returns what is left of a client's key; nil: it has no limit.
func (u usesOf) of(c *keys.Client) *uses {
	count, ok := u[c.ID]
	if !ok && c.Recovery == 0 {
		return nil
	}
	if !ok {
		return &uses{Uses: c.Recovery}
	}
	left := count.Left(c.Recovery)
	return &uses{Uses: count.Uses, Left: &left, Last: enrol.Known(count.Last)}
}

// warnUses warns if a client's file says something else of its uses than holds.
func warnUses(cmd *cobra.Command, dir string, c *keys.Client) {
	count, ok := readUses(dir)[c.ID]
	switch {
	case c.Recovery > 0 && !ok:
		cli.Warn(cmd, "the present key of %s has no count of uses, so the server refuses it until: spa-keygen rotate %[1]s",
			c.Name)
	case ok && c.Recovery == 0, ok && c.Recovery > count.Uses:
		cli.Warn(cmd, "the present key of %s keeps the %d uses that it was made with; to change that: spa-keygen rotate "+
			"%[1]s", c.Name, count.Uses)
	}
}

// page returns the page to print: what it is for, the token as a QR code, and as words.
func page(c *keys.Client, p *keys.Profile) (string, error) {
	code, err := enrol.Encode(p.Token())
	if err != nil {
		return "", err
	}
	service, ends := "SERVICE", "never"
	if len(c.Allow) > 0 {
		service = c.Allow[0]
	}
	if !c.Expires.IsZero() {
		ends = moment(&c.Expires)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("RECOVERY KEY of the gateway %s (%s)", strings.TrimSuffix(p.Name, "-"+c.Name), p.Address)
	line("Client %s, key %s. Opens: %s. Expires: %s.", c.Name, c.ID, strings.Join(c.Allow, ", "), ends)
	line("Good for %d uses, each of which raises an alarm. Anyone who has this page can use it.", c.Recovery)
	line("")
	line("When no other key gets you in, on any machine that has spa-client:")
	line("")
	line("    spa-client import --words")
	line("    spa-client open %s --host %s --wait", service, p.Name)
	line("")
	line("Type the words that it asks for, a line at a time. Or read the code with a phone, and")
	line("give its text to \"spa-client import\". Afterwards print a new page, on the gateway:")
	line("    spa-keygen rotate %s", c.Name)
	line("")
	b.WriteString(code.Print("            "))
	line("")
	words := p.Words()
	for i, words := range words {
		line("%2d  %s", i+1, words)
	}
	line("")
	line("These are %d words in %d lines. Capital letters and line breaks do not matter.",
		len(strings.Fields(strings.Join(words, " "))), len(words))
	return b.String(), nil
}
