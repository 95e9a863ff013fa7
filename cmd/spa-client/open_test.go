package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

// shut returns an opened answer of this machine, where nothing listens on the port.
func shut(ports service.Ports) client.Answer {
	a := answerFrom("127.0.0.1", client.Opened, spa.Granted)
	a.Receipt.Services = []spa.Granting{{Ports: []service.Ports{ports}}}
	return a
}

func TestWaitOpen(t *testing.T) {
	discard := service.Ports{Proto: service.TCP, Low: 9, High: 9}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		answers []client.Answer
		want    func(error) bool
		warning string
	}{
		"only what is open is waited for": {t.Context(), []client.Answer{answerFrom("::1", client.Silent, 0), shut(discard)},
			func(err error) bool { return errors.As(err, new(*cli.Exit)) }, ""},
		"UDP cannot be waited for": {t.Context(), []client.Answer{shut(service.Ports{Proto: service.UDP, Low: 9, High: 9})},
			func(err error) bool { return err == nil }, "no TCP port to wait for"},
		"interrupted": {ended, []client.Answer{shut(discard)},
			func(err error) bool { return errors.Is(err, context.Canceled) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k, cmd, stderr := answered()
			profile := &keys.Profile{Name: "gw", Address: "127.0.0.1", KnockPorts: []uint16{9}, ServerID: keys.NewServerID(),
				Gate: keys.NewGateKey(), ID: keys.NewID(), Key: keys.NewKey()}
			plan, err := client.Prepare(t.Context(), profile, client.Command{Type: spa.TypeOpen,
				Services: []service.Service{{Name: "ssh"}}, Timeout: 50 * time.Millisecond})
			lab.Must(t, err)
			k.plan = plan
			cmd.SetContext(c.ctx)
			if err := k.waitOpen(cmd, c.answers); !c.want(err) {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(stderr.String(), c.warning) {
				t.Errorf("got %q, want it to say %q", stderr, c.warning)
			}
		})
	}
}
