package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa"
	"sallyport/spa/client"
)

// mostSeveral bounds a file of services that admit several connections.
const mostSeveral = 64 << 10

// errSpent is returned if the attempt to connect beside the knock may have used up a grant for one connection.
var errSpent = errors.New("the grant was for one connection")

// severalPath returns the file that lists the services of a host that admit several connections, by its last receipts:
// the gateway's id, then a service on each line. The profile does not say so, and exec and open --wait must not try any
// other service beside the knock: that would use up the grant. For a gateway of a fleet it is FLEET.GATEWAY: no name
// has a dot.
func (a *app) severalPath(p *keys.Profile) string {
	return filepath.Join(a.config, "several", strings.ReplaceAll(p.Name, "/", "."))
}

// dropSeveral removes the files of a host, or of all gateways of a fleet. There may be none.
func (a *app) dropSeveral(p *keys.Profile) {
	path := a.severalPath(p)
	files, _ := os.ReadDir(filepath.Dir(path))
	for _, file := range files {
		if name, _, _ := strings.Cut(file.Name(), "."); name == p.Name {
			_ = os.Remove(filepath.Join(filepath.Dir(path), file.Name()))
		}
	}
}

// several returns the services in that file. Without a file of this gateway there are none.
func (a *app) several(p *keys.Profile) []string {
	text, err := place.ReadFile(a.severalPath(p), mostSeveral)
	if err != nil {
		return nil
	}
	lines := strings.Fields(string(text))
	if len(lines) == 0 || lines[0] != p.ServerID.String() {
		return nil
	}
	return lines[1:]
}

// beside makes the command try its one service beside the knock, if it admits several connections.
func (k *knock) beside(p *keys.Profile, c *client.Command) {
	c.Beside = k.wait && !k.renew && c.Type == spa.TypeOpen && len(c.Services) == 1 &&
		slices.Contains(k.app.several(p), c.Services[0].String())
}

// learn records what a receipt says about the command's one service. Without the record it takes a round trip more, so
// an error changes nothing.
func (k *knock) learn(answers []client.Answer) {
	p, c := k.plan.Profile, k.plan.Command
	i := slices.IndexFunc(answers, func(a client.Answer) bool { return a.Verdict == client.Opened && a.Receipt != nil })
	if i < 0 || c.Type != spa.TypeOpen || len(c.Services) != 1 {
		return
	}
	name, known := c.Services[0].String(), k.app.several(p)
	if slices.Contains(known, name) == !granted(answers[i], 0).Once {
		return
	}
	known = slices.DeleteFunc(slices.Clone(known), func(s string) bool { return s == name })
	if !granted(answers[i], 0).Once {
		known = append(known, name)
	}
	path := k.app.severalPath(p)
	if os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return
	}
	text := append([]string{p.ServerID.String()}, known...)
	_ = place.Write(path, []byte(strings.Join(text, "\n")+"\n"), place.EitherWay, place.ForOwner)
}

// again knocks once more, after a grant for one connection was spent by trying it.
func (k *knock) again(cmd *cobra.Command) error {
	c := k.plan.Command
	c.Beside = false
	var err error
	if k.plan, err = client.Prepare(cmd.Context(), k.plan.Profile, c); err != nil {
		return unprepared(err)
	}
	return k.send(cmd)
}
