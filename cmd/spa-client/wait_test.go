package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

// TestWaitOpenInEitherFamily: a family whose connections do not get through does not delay the other, whichever was
// answered first.
func TestWaitOpenInEitherFamily(t *testing.T) {
	listening := lab.Value(net.Listen("tcp4", "127.0.0.1:0"))(t)
	defer listening.Close()
	at := netip.MustParseAddrPort(listening.Addr().String())
	port := service.Ports{Proto: service.TCP, Low: at.Port(), High: at.Port()}
	accepts, dead := shut(port), shut(port)
	dead.Gateway = netip.MustParseAddr("127.0.0.77") // nothing listens there
	for name, answers := range map[string][]client.Answer{"dead first": {dead, accepts}, "dead last": {accepts, dead}} {
		t.Run(name, func(t *testing.T) {
			k, cmd, _ := answered()
			// So long that a test which waits for the dead family first does not end.
			k.plan = planned(t, client.Command{Type: spa.TypeOpen, Services: []service.Service{{Name: "ssh"}},
				Timeout: 100 * lab.Patience})
			cmd.SetContext(t.Context())
			done := make(chan error, 1)
			go func() { done <- k.waitOpen(cmd, answers) }()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("got %v", err)
				}
			case <-time.After(lab.Patience):
				t.Error("the port accepts, and is waited for")
			}
		})
	}
}

func planned(t *testing.T, c client.Command) *client.Plan {
	t.Helper()
	profile := &keys.Profile{Name: "gw", Address: "127.0.0.1", KnockPorts: []uint16{9}, ServerID: keys.NewServerID(),
		Gate: keys.NewGateKey(), ID: keys.NewID(), Key: keys.NewKey()}
	plan := lab.Value(client.Prepare(t.Context(), profile, c))(t)
	return plan
}

// TestWrongPortIsSaidOnce: a wrong port is reported once, although it is wrong in each family.
func TestWrongPortIsSaidOnce(t *testing.T) {
	k, cmd, _ := answered()
	cmd.SetContext(t.Context())
	wrong := &client.PortError{Service: service.Service{Name: "web"},
		Ports: []service.Ports{{Proto: service.TCP, Low: 80, High: 80}}, Port: 99}
	if err := k.undialled(cmd, nil, errors.Join(wrong, wrong)); err == nil || err.Error() != wrong.Error() {
		t.Errorf("got %q, want %q", err, wrong)
	}
}

func TestNotEachAccepts(t *testing.T) {
	k, cmd, _ := answered()
	k.plan = planned(t, client.Command{Type: spa.TypeOpen, Services: []service.Service{{Name: "ssh"}, {Name: "web"}},
		Timeout: 50 * time.Millisecond})
	cmd.SetContext(t.Context())
	err := k.waitOpen(cmd, []client.Answer{shut(service.Ports{Proto: service.TCP, Low: 9, High: 9})})
	if err == nil || err.Error() != "ssh, web are open on gw, but not all accept connections" {
		t.Errorf("got %v", err)
	}
}
