package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

const (
	grantFor = 5 * time.Second
	againFor = 30 * time.Second // of the second grant; no step waits for its end
	// overtime is how late a grant may end on a busy machine.
	overtime = 3 * time.Second

	door4 = gateway4 + ":22"
	door6 = "[" + gateway6 + "]:22"
)

func (d *demo) introduce() {
	d.Heading("Sallyport: one packet opens one port, to one address, for a short time")
	d.Say(`Three machines on one network, made of namespaces that are removed at the end:
  gateway   192.0.2.1  runs a service on tcp/22 (it echoes, in place of ssh)
  alice     192.0.2.2  will be given a key
  stranger  192.0.2.3  has none
Whether a port is open is shown by connecting to it, nothing else.`)
}

func (d *demo) steps() []stage.Step {
	return []stage.Step{
		{Title: "Before: the port answers everyone", Do: d.before},
		{Title: "The gateway's files, and a key for alice", Do: d.enrol},
		{Title: "The server starts, and the port goes dark", Do: d.guard},
		{Title: "Alice's packet opens it, to her only", Do: d.knock},
		{Title: "It closes on its own, and her session continues", Do: d.expire},
		{Title: "Her packet, copied on the path, opens nothing", Do: d.replay},
		{Title: "A new packet opens it again" + over6(" (this time over IPv6)"), Do: d.knockAgain},
		{Title: "What the gateway's administrator sees", Do: d.administer},
		{Title: "The server stops: nothing opens", Do: d.stop},
	}
}

// over6 returns the text if the kernel has IPv6.
func over6(text string) string {
	if lab.HasIPv6() {
		return text
	}
	return ""
}

func (d *demo) before(context.Context) error {
	if _, err := lab.EchoServer(d.gateway.Host, ":22"); err != nil {
		return err
	}
	if err := d.BothMeet(d.alice, stage.Open, d.stranger, stage.Open, door4); err != nil {
		return err
	}
	return d.scan(sight{open: []int{22}}, stage.AnswerWithin)
}

// scan lets the stranger look for open ports.
func (d *demo) scan(want sight, wait time.Duration) error {
	seen, err := scan(d.stranger.Host, wait)
	if err == nil && !(slices.Equal(seen.open, want.open) && subset(want.silent, seen.silent)) {
		err = fmt.Errorf("the stranger's scan: got %v, want %v", seen, want)
	}
	return d.Verdict(fmt.Sprintf("stranger scans tcp/1 to tcp/%d", scanTo), seen.String(), err)
}

// subset reports whether all contains each of some. A very busy machine may leave others silent.
func subset(some, all []int) bool {
	return !slices.ContainsFunc(some, func(port int) bool { return !slices.Contains(all, port) })
}

func (d *demo) enrol(ctx context.Context) error {
	out, err := d.Command(ctx, d.gateway, "#", "",
		"spa-server", "init", "--config", "gateway", "--address", gateway4, "--service", "ssh=tcp/22")
	if err != nil {
		return err
	}
	d.Output(out)
	token, err := d.Command(ctx, d.gateway, "#", "", "spa-keygen", "new", "alice", "--allow",
		"ssh", "--config", "gateway")
	if err != nil {
		return err
	}
	token = strings.TrimSpace(token)
	d.Output(fmt.Sprintf("%.16s... (%d characters: all that alice needs, and secret)", token, len(token)))
	out, err = d.Command(ctx, d.alice, "$", token, "spa-client", "import", "--config", "alice", "-")
	d.Output(out)
	return err
}

func (d *demo) guard(ctx context.Context) error {
	var err error
	if d.server, err = d.Start(ctx, d.gateway, "gateway"); err != nil {
		return err
	}
	if err := d.BothMeet(d.alice, stage.Dark, d.stranger, stage.Dark, door4); err != nil {
		return err
	}
	if err := d.scan(sight{silent: []int{22}}, stage.Patience); err != nil {
		return err
	}
	err = errors.Join(closedUDP(d.stranger.Host, stage.KnockPort), closedUDP(d.stranger.Host, stage.KnockPort+1))
	how := "both closed, and knocks go to the first"
	if err != nil {
		how = "they differ"
	}
	d.Say(`Where closed ports answer, as here, closed = "reject" in server.toml has port 22 answer like them.`)
	return d.Verdict(fmt.Sprintf("stranger tries udp/%d and udp/%d", stage.KnockPort, stage.KnockPort+1), how, err)
}

// withoutTime removes the time from log lines, and the quotes around their messages.
func withoutTime(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		if _, rest, found := strings.Cut(line, " level="); found {
			level, message, _ := strings.Cut(rest, " msg=")
			line = level + " " + message
			if quoted, err := strconv.QuotedPrefix(message); err == nil {
				unquoted, _ := strconv.Unquote(quoted) // it is quoted: the pattern matched
				line = level + " " + unquoted + message[len(quoted):]
			}
		}
		out.WriteString(line)
	}
	return out.String()
}

func (d *demo) knock(ctx context.Context) (err error) {
	d.Say("Someone on the path copies what she sends, for later.")
	if d.sniffer, err = stage.Sniff(d.alice); err != nil {
		return err
	}
	if err := d.ask(ctx, "gw", grantFor); err != nil {
		return err
	}
	d.openUntil = time.Now().Add(grantFor)
	if d.knocks, err = d.sniffer.Knocks(); err != nil {
		return err
	}
	if len(d.knocks) == 0 {
		return errors.New("no packet of alice's was seen")
	}
	if d.session, err = d.Meet(d.alice, stage.Open, door4); err != nil {
		return err
	}
	if err := d.chat("hello"); err != nil {
		return err
	}
	_, err = d.Meet(d.stranger, stage.Dark, door4)
	return err
}

// ask lets alice open ssh on a host for a while.
func (d *demo) ask(ctx context.Context, host string, long time.Duration) error {
	out, err := d.Command(ctx, d.alice, "$", "", "spa-client", "open", "ssh",
		"--host", host, "--for", long.String(), "--config", "alice")
	d.Output(out)
	return err
}

func (d *demo) expire(ctx context.Context) error {
	d.Say(fmt.Sprintf("Waiting until the %.0f seconds are over ...", grantFor.Seconds()))
	if err := d.untilDark(ctx); err != nil {
		return err
	}
	if err := d.BothMeet(d.alice, stage.Dark, d.stranger, stage.Dark, door4); err != nil {
		return err
	}
	return d.chat("still here")
}

// untilDark waits for the end of alice's grant.
func (d *demo) untilDark(ctx context.Context) error {
	select {
	case <-time.After(time.Until(d.openUntil)):
	case <-ctx.Done():
		return ctx.Err()
	}
	for ctx.Err() == nil {
		conn, err := lab.Dial(d.alice.Host, "", door4, stage.Patience)
		if err != nil {
			return nil // bothMeet reports what it is
		}
		conn.Close()
		if late := time.Since(d.openUntil); late > overtime {
			return fmt.Errorf("alice still gets in %.0f seconds after the end", late.Seconds())
		}
	}
	return ctx.Err()
}

func (d *demo) replay(context.Context) error {
	for _, sender := range []*stage.Host{d.alice, d.stranger} {
		if err := stage.Resend(sender, gateway4, d.knocks); err != nil {
			return err
		}
		d.Say(fmt.Sprintf("The copy is sent again, from %s (%s).", sender.Addr4, sender.Name()))
		if err := d.BothMeet(d.alice, stage.Dark, d.stranger, stage.Dark, door4); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) knockAgain(ctx context.Context) error {
	host, door := "gw", door4
	if lab.HasIPv6() {
		host, door = "gw6", door6
		if err := d.copyProfile(host, gateway6); err != nil {
			return err
		}
	}
	if err := d.ask(ctx, host, againFor); err != nil {
		return err
	}
	return d.BothMeet(d.alice, stage.Open, d.stranger, stage.Dark, door)
}

// copyProfile gives alice a second host profile: the same gateway at another address.
func (d *demo) copyProfile(name, address string) error {
	hosts := filepath.Join(d.Dir, "alice", "hosts")
	text, err := os.ReadFile(filepath.Join(hosts, "gw.toml"))
	if err != nil {
		return err
	}
	changed := strings.NewReplacer(
		`name = "gw"`, fmt.Sprintf("name = %q", name),
		fmt.Sprintf("address = %q", gateway4), fmt.Sprintf("address = %q", address),
	).Replace(string(text))
	d.Say(fmt.Sprintf("Alice has hosts/%s.toml too: the same, with the gateway's address %s.", name, address))
	return os.WriteFile(filepath.Join(hosts, name+".toml"), []byte(changed), 0o600)
}

func (d *demo) administer(ctx context.Context) error {
	if err := d.server.HasSaid(ctx, "from another address"); err != nil {
		return err
	}
	d.Say("In the server's log:")
	d.Output(withoutTime(d.server.Log()))
	out, err := d.Command(ctx, d.gateway, "#", "", "spa-server", "status", "--config", "gateway")
	d.Output(stage.Lines(out, "guards", "guard", "grants", "packets", "heard"))
	return err
}

func (d *demo) stop(ctx context.Context) error {
	d.Prompt("gateway#", "kill %1")
	if err := d.server.Stop(ctx); err != nil {
		return err
	}
	d.Say("Without a server no one gets in: the guard is in the kernel and stays.")
	_, err := d.Meet(d.stranger, stage.Dark, door4)
	return err
}

// chat lets alice send something in her session and receive it back.
func (d *demo) chat(words string) error {
	err := lab.Echoes(d.session, words, stage.AnswerWithin)
	how := fmt.Sprintf("says %q and hears it back", words)
	if err != nil {
		how, err = err.Error(), fmt.Errorf("alice's session: %w", err)
	}
	return d.Verdict("alice    in her session", how, err)
}
