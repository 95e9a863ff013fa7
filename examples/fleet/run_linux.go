package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

func run(ctx context.Context, tell *stage.Teller) error {
	return stage.Run(ctx, tell, []string{"spa-server", "spa-client", "spa-fleet"}, story)
}

// noAnswer is spa-client's exit code when the gateway does not answer.
const noAnswer = 4

// fleet is the people and their things.
type fleet struct {
	*stage.Stage
	gateways             map[string]*stage.Host
	office               *stage.Host
	alice, bob, stranger *stage.Host
	servers              map[string]*stage.Server // that run, by gateway
	serial               int                      // of the last publish
}

// story runs the example from the first host made to the last step.
func story(ctx context.Context, s *stage.Stage) error {
	hosts, err := s.Hosts("web", "db", "mail", "backup", "alice", "bob", "stranger", "office")
	if err != nil {
		return err
	}
	f := &fleet{Stage: s, gateways: make(map[string]*stage.Host), servers: make(map[string]*stage.Server),
		alice: hosts[4], bob: hosts[5], stranger: hosts[6], office: hosts[7]}
	var names strings.Builder
	for _, gateway := range hosts[:4] {
		f.gateways[gateway.Name()] = gateway
		fmt.Fprintf(&names, "%s %s\n", gateway.Addr4, address(gateway.Name()))
		if _, err := lab.EchoServer(gateway.Host, ":22"); err != nil {
			return err
		}
	}
	path := filepath.Join(s.Dir, "names")
	if err := os.WriteFile(path, []byte(names.String()), 0o644); err != nil {
		return err
	}
	s.Sees = map[string]string{"/etc/hosts": path}
	f.introduce()
	return f.Follow(ctx, f.steps())
}

// address returns a gateway's name in the DNS.
func address(gateway string) string { return gateway + "." + domain }

// door returns where a gateway's service is.
func (f *fleet) door(gateway string) string { return f.gateways[gateway].Addr4 + ":22" }

// opens knocks from a host, and connects.
func (f *fleet) opens(ctx context.Context, who *stage.Host, gateway string) error {
	out, err := f.knock(ctx, who, gateway, "10s")
	f.Output(out)
	if err != nil {
		return err
	}
	return f.meets(who, stage.Open, gateway)
}

// silence knocks from a host, and checks that there is no answer and the service stays dark.
func (f *fleet) silence(ctx context.Context, who *stage.Host, gateway string) error {
	_, err := f.knock(ctx, who, gateway, "3s")
	how, broken := "no answer", error(nil)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != noAnswer {
		how, broken = "something else", fmt.Errorf("%s's knock at %s: got %v, want no answer", who.Name(), gateway, err)
	}
	if err := f.Verdict(fmt.Sprintf("%-8s knocks at %s", who.Name(), gateway), how, broken); err != nil {
		return err
	}
	return f.meets(who, stage.Dark, gateway)
}

func (f *fleet) knock(ctx context.Context, who *stage.Host, gateway, timeout string) (string, error) {
	host := "prod/" + gateway
	if who == f.stranger { // who has no token for the fleet
		host = gateway
	}
	return f.Command(ctx, who, "$", "", "spa-client", "open", "ssh", "--host", host, "--for", "10m", "--timeout",
		timeout, "--config", who.Name())
}

// meets connects from a host to a gateway's service.
func (f *fleet) meets(who *stage.Host, want stage.Promise, gateway string) error {
	conn, err := f.Meet(who, want, f.door(gateway))
	if conn != nil {
		conn.Close()
	}
	return err
}

// run runs one of our programs and shows what it prints.
func (f *fleet) run(ctx context.Context, on *stage.Host, prompt, program string, args ...string) error {
	out, err := f.Command(ctx, on, prompt, "", program, args...)
	f.Output(stage.Short(out))
	return err
}

func (f *fleet) manage(ctx context.Context, args ...string) (string, error) {
	return f.Manage(ctx, f.office, args...)
}

// publish publishes, carries each bundle to its gateway, and waits until those that run have taken it over.
func (f *fleet) publish(ctx context.Context) error {
	out, err := f.manage(ctx, "publish", "--to", "bundles")
	f.Output(out)
	if err != nil {
		return err
	}
	f.serial++
	f.Say("Each gateway is brought its bundle: here by a copy.")
	published, err := filepath.Glob(filepath.Join(f.Dir, "bundles", "*.bundle"))
	if err != nil {
		return err
	}
	for _, path := range published {
		if err := f.bring(path, strings.TrimSuffix(filepath.Base(path), ".bundle")); err != nil {
			return err
		}
	}
	for _, server := range f.servers {
		if err := server.HasSaid(ctx, fmt.Sprintf(`taken over" serial=%d `, f.serial)); err != nil {
			return err
		}
	}
	return nil
}

// bring puts a bundle where a gateway looks for it, whole, as rsync does. It is sealed, so everyone may read it.
func (f *fleet) bring(bundle, gateway string) error {
	text, err := os.ReadFile(bundle)
	if err != nil {
		return err
	}
	half := filepath.Join(f.Dir, gateway, "half")
	if err := errors.Join(os.WriteFile(half, text, 0o644), os.Chmod(half, 0o644)); err != nil {
		return err
	}
	return os.Rename(half, f.bundle(gateway))
}

// bundle returns where a gateway looks for its bundle.
func (f *fleet) bundle(gateway string) string { return filepath.Join(f.Dir, gateway, "fleet.bundle") }
