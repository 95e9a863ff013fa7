// Package check inspects a gateway's files, host and running server. It reports what is wrong, what that means for
// access, and the command that fixes it. It changes nothing.
package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/replay"
	"sallyport/spa/server/setup"
)

// Severity ranks a finding.
type Severity string

const (
	// Problem: the gateway does not start, a client cannot knock, or a guarded port is open.
	Problem Severity = "problem"
	// Warning: it works, but something weakens it or has no effect yet.
	Warning Severity = "warning"
	// Notice: it works, but may not be intended.
	Notice Severity = "notice"
)

// Finding is one result of a check.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // the file, or the setting
	Text     string   `json:"text"`    // what is wrong
	// Advice is what to do about it: a shell command on each line. A line that begins with # has words instead.
	Advice string `json:"advice,omitzero"`
}

// Run parses everything in the configuration directory and inspects the host, without changing anything: its rule sets,
// sockets, clock, files and units. It reports what it could not inspect. No finding means that no problem was found.
// The version is the program's. If from is valid, Run also follows the path of the client at this address.
func Run(ctx context.Context, dir, version string, from netip.Addr, now time.Time) []Finding {
	h := look(ctx)
	h.version = version
	defer h.close()
	h.from = from.Unmap()
	return examine(ctx, dir, now, h)
}

func examine(ctx context.Context, dir string, now time.Time, h *host) []Finding {
	var found []Finding
	c, err := config.Load(dir)
	if err != nil {
		found = checkFile(filepath.Join(dir, config.FileName), err)
		last, at, none := setup.LastGood(dir)
		if none != nil {
			return found
		}
		c = last
		found = append(found, Finding{
			Severity: Notice, Subject: config.FileName,
			Text: "until it is fixed, the guard and the findings below are those of its last good version, of " +
				at.Format(time.DateTime),
			Advice: "# fix the file",
		})
	}
	mistaken := err != nil
	gates, err := keys.ReadGate(filepath.Join(c.Dir, config.GateFile))
	if err != nil {
		found = append(found, Finding{
			Severity: Problem, Subject: config.GateFile,
			Text:   err.Error() + ": the server does not start",
			Advice: "# put back a copy of the file: without it no client's token works",
		})
	}
	found = append(found, checkLoaded(ctx, c, h, gates, mistaken)...)
	registry, problems := setup.LoadClients(filepath.Join(c.Dir, config.ClientsDir))
	found = append(found, checkFleet(c, registry, now)...)
	if c.Fleet.On() && !c.Fleet.LocalClients {
		problems = nil // of files that do not count
	}
	found = append(found, checkClients(c, registry, problems, now)...)
	found = append(found, checkServices(c)...)
	found = append(found, checkActions(c)...)
	found = append(found, checkWeak(c, h)...)
	found = append(found, checkWeakKeys(gates, registry, now)...)
	found = append(found, checkRecovery(c, registry, now)...)
	found = append(found, checkJournal(c)...)
	return append(found, checkHost(ctx, c, h)...)
}

// checkFile returns a finding for each mistake in a file, with its line.
func checkFile(path string, err error) []Finding {
	if errors.Is(err, fs.ErrNotExist) {
		return []Finding{{
			Severity: Problem, Subject: path,
			Text: err.Error(),
			Advice: "# if a gateway's files are in another directory: --config DIR\n# to make a gateway: " +
				"spa-server init --address HOST",
		}}
	}
	mistakes := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		mistakes = joined.Unwrap()
	}
	found := make([]Finding, len(mistakes))
	for i, mistake := range mistakes {
		found[i] = Finding{
			Severity: Problem, Subject: path,
			Text:   mistake.Error(),
			Advice: "# fix the file",
		}
		if at, ok := errors.AsType[*place.FileError](mistake); ok {
			found[i].Subject = at.Place()
			found[i].Text = strings.TrimPrefix(at.Error(), at.Place()+": ")
		}
	}
	return found
}

func checkClients(c *config.Config, registry *keys.Registry, problems []error, now time.Time) []Finding {
	var found []Finding
	for _, problem := range problems {
		found = append(found, Finding{
			Severity: Problem, Subject: config.ClientsDir,
			Text:   problem.Error() + ": this client cannot knock",
			Advice: "# fix the file",
		})
	}
	if registry.Len() == 0 && !c.Fleet.On() {
		found = append(found, Finding{
			Severity: Notice, Subject: config.ClientsDir,
			Text:   "there are no clients yet, so no knock can be accepted",
			Advice: "spa-keygen new NAME --allow SERVICE",
		})
	}
	for _, client := range registry.Clients() {
		if !client.Fleet { // its terms are for all gateways, and the office's
			found = append(found, checkClient(c, client, now)...)
		}
	}
	return found
}

func checkClient(c *config.Config, client *keys.Client, now time.Time) []Finding {
	subject := filepath.Join(config.ClientsDir, client.Name+".toml")
	var found []Finding
	if !client.Expires.IsZero() && !now.Before(client.Expires) && client.Revoked.IsZero() {
		found = append(found, Finding{
			Severity: Notice, Subject: subject,
			Text:   "the key expired on " + client.Expires.Format(time.DateOnly),
			Advice: "spa-keygen revoke " + client.Name + "\n# or set a later expires in " + subject,
		})
	}
	for _, text := range client.Allow {
		if err := c.CheckAllow(text); err != nil {
			found = append(found, Finding{
				Severity: Problem, Subject: subject,
				Text:   fmt.Sprintf("allow names %q: %v", text, err),
				Advice: "# add a [service.NAME] for it to " + config.FileName + ", or take it out",
			})
		}
	}
	return found
}

// pasteLines joins advice to one text without duplicate lines, commands first.
func pasteLines(advice ...string) string {
	var commands, words []string
	for line := range strings.SplitSeq(strings.Join(advice, "\n"), "\n") {
		to := &commands
		if strings.HasPrefix(line, "#") {
			to = &words
		}
		if !slices.Contains(*to, line) {
			*to = append(*to, line)
		}
	}
	return strings.Join(append(commands, words...), "\n")
}

func checkServices(c *config.Config) []Finding {
	if len(c.Services) > 0 {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: config.FileName,
		Text:   "there is no service: nothing is guarded",
		Advice: "# add a [service.NAME]",
	}}
}

func checkJournal(c *config.Config) []Finding {
	path := filepath.Join(c.State, config.JournalFile)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !setup.IsDir(c.State):
		return []Finding{{
			Severity: Problem, Subject: "state",
			Text:   c.State + ": no such directory, and the server does not start without it",
			Advice: setup.MakeState(c.State),
		}}
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{{
			Severity: Notice, Subject: path,
			Text:   "there is no journal: the server makes one when it starts, and refuses knocks for a window after that",
			Advice: "# restore it if it was moved by mistake and the host was not rebooted since",
		}}
	case err != nil:
		return []Finding{{
			Severity: Problem, Subject: path,
			Text:   err.Error(),
			Advice: "# run check as root",
		}}
	case !info.Mode().IsRegular():
		return []Finding{{
			Severity: Problem, Subject: path,
			Text:   "this is not a regular file, and the server does not start with it",
			Advice: "mv -T " + quote.Shell(path) + " " + quote.Shell(path+".old") + "\n# the server makes a new one",
		}}
	}
	// A journal that cannot be read is damaged, and reported elsewhere.
	if foreign, err := replay.Foreign(path, replay.Config{Window: c.Window}); err == nil && foreign {
		return []Finding{{
			Severity: Warning, Subject: path,
			Text: "this journal came from another machine. If a gateway with the same keys still runs there, a packet that " +
				"was spent at one of the two opens the other",
			Advice: "# if the other machine still runs, stop one of the two, or make this one a gateway of its own: " +
				"spa-server init --config DIR",
		}}
	}
	return nil
}
