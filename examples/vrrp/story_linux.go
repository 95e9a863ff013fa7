package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sallyport/examples/internal/stage"
)

func (p *pair) introduce() {
	p.Heading("Two gateways, one address")
	p.Say(`Machines on one network, made of namespaces that are removed at the end:
  lb1, lb2    192.0.2.1, .2  gateways, with a service on tcp/22 (it echoes, in place of ssh)
  edge        192.0.2.100    the address that they share: keepalived gives it to one of them
  store       192.0.2.3      runs etcd
  office      192.0.2.4      decides who may knock
  alice, bob  192.0.2.5, .6  will be given tokens
  eve         192.0.2.7      copies what alice sends`)
}

func (p *pair) steps() []stage.Step {
	return []stage.Step{
		{Title: "An office, and two gateways with the site edge", Do: p.found},
		{Title: "etcd has the bundles, and what the gateways share", Do: p.keep},
		{Title: "The gateways start, and lb1 gets the address", Do: p.guard},
		{Title: "Alice knocks at the address, and both gateways let her in", Do: p.open},
		{Title: "lb1 loses power: lb2 lets alice in without another knock", Do: p.lose},
		{Title: "Eve sends alice's packet to lb2, which never saw it", Do: p.replay},
		{Title: "lb1 returns, and has what was granted meanwhile", Do: p.back},
		{Title: "Alice closes: both gateways are dark", Do: p.close},
		{Title: "spa-server ends at lb1, and the address moves", Do: p.end},
	}
}

func (p *pair) found(ctx context.Context) error {
	if err := p.manage(ctx, "init", "--name", "prod", "--domain", domain, "--service", "ssh=tcp/22", "--admin",
		"anna"); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(p.Dir, "office", "office.toml"))
	if err != nil {
		return err
	}
	p.fleet = regexp.MustCompile(`(?m)^fleet = ".*"`).FindString(string(text))
	for _, m := range p.members {
		if err := p.Join(ctx, p.office, m.Host, m.Addr4, "--site", site); err != nil {
			return err
		}
		if err := p.settle(ctx, m); err != nil {
			return err
		}
	}
	for _, who := range []*stage.Host{p.alice, p.bob} {
		token := who.Name() + ".token"
		if err := p.manage(ctx, "client", "new", who.Name(), "--allow", "ssh", "--out", token); err != nil {
			return err
		}
		if err := p.on(ctx, who, "$", "spa-client", "import", token, "--config", who.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) keep(ctx context.Context) error {
	p.Say("Here etcd runs on one machine; three are better. Each program that uses it has a certificate of its own.")
	if err := p.certify("etcd", "office", "lb1", "lb2"); err != nil {
		return err
	}
	if err := p.startStore(ctx); err != nil {
		return err
	}
	return p.manage(ctx, "publish", "--to", "etcd://"+p.store.Addr4+":2379", "--ca", "ca.pem", "--cert", "office.pem",
		"--key", "office.key")
}

func (p *pair) guard(ctx context.Context) error {
	for _, m := range p.members {
		if err := p.start(ctx, m); err != nil {
			return err
		}
	}
	if err := p.takesOver(ctx, p.members[0]); err != nil {
		return err
	}
	if err := p.status(ctx, p.members[0], "edge: gateways that take part: lb1, lb2"); err != nil {
		return err
	}
	return p.meet(p.alice, stage.Dark, shared)
}

// takesOver waits until keepalived has given a member the address.
func (p *pair) takesOver(ctx context.Context, m *member) error {
	err := m.keepalived.HasSaid(ctx, "Entering MASTER STATE")
	return p.Verdict("keepalived gives "+shared+" to", m.Name(), err)
}

func (p *pair) open(ctx context.Context) error {
	copied, err := stage.Sniff(p.alice)
	if err != nil {
		return err
	}
	defer copied.Close()
	if err := p.knock(ctx, p.alice, "open", "--for", "10m"); err != nil {
		return err
	}
	if p.knocks, err = copied.Knocks(); err != nil {
		return err
	}
	if err := p.meet(p.alice, stage.Open, shared); err != nil {
		return err
	}
	p.Say("The gateways' own addresses show that both have the grant, and that it is alice's only.")
	if err := p.meet(p.alice, stage.Open, p.members[0].Addr4, p.members[1].Addr4); err != nil {
		return err
	}
	return p.meet(p.bob, stage.Dark, shared)
}

func (p *pair) lose(ctx context.Context) error {
	one, other := p.members[0], p.members[1]
	p.Say("Power is off: the cable of lb1 is dead, and its programs are killed.")
	if err := one.SetDown("eth0"); err != nil {
		return err
	}
	for _, program := range []*stage.Server{one.keepalived, one.agent, one.server} {
		program.Kill()
	}
	if err := p.takesOver(ctx, other); err != nil {
		return err
	}
	return p.meet(p.alice, stage.Open, shared)
}

func (p *pair) replay(ctx context.Context) error {
	if len(p.knocks) == 0 {
		return errors.New("no packet of alice's was seen")
	}
	if err := stage.Resend(p.eve, shared, p.knocks); err != nil {
		return err
	}
	p.Say("Eve sends it from 192.0.2.7. The packet has no address in it, so to a gateway that shares nothing it is new.")
	if err := p.meet(p.eve, stage.Dark, shared); err != nil {
		return err
	}
	return p.status(ctx, p.members[1], fmt.Sprintf(" %d spent elsewhere", len(p.knocks))) // spa-client may send two
}

// status shows what a member says of its site, once the words are in it.
func (p *pair) status(ctx context.Context, m *member, words string) error {
	ctx, cancel := context.WithTimeout(ctx, stage.AnswerWithin)
	defer cancel()
	for {
		out, err := p.Quietly(ctx, m.Host, "", "spa-server", "status", "--config", m.Name())
		if err != nil {
			return fmt.Errorf("waiting for a status with %q: %w", words, err)
		}
		if said := stage.Lines(out, "site"); strings.Contains(said, words) {
			p.Prompt(m.Name()+"#", "spa-server status --config "+m.Name())
			p.Output(said)
			return nil
		}
	}
}

func (p *pair) back(ctx context.Context) error {
	one := p.members[0]
	if err := p.knock(ctx, p.bob, "open", "--for", "10m"); err != nil {
		return err
	}
	if err := p.meet(p.bob, stage.Open, shared); err != nil {
		return err
	}
	if err := one.SetUp("eth0"); err != nil {
		return err
	}
	if err := p.start(ctx, one); err != nil {
		return err
	}
	if err := p.takesOver(ctx, one); err != nil {
		return err
	}
	if err := p.meet(p.bob, stage.Open, shared, one.Addr4); err != nil {
		return err
	}
	return p.meet(p.eve, stage.Dark, shared)
}

func (p *pair) close(ctx context.Context) error {
	if err := p.knock(ctx, p.alice, "close"); err != nil {
		return err
	}
	if err := p.meet(p.alice, stage.Dark, p.members[0].Addr4, p.members[1].Addr4, shared); err != nil {
		return err
	}
	return p.meet(p.bob, stage.Open, shared)
}

func (p *pair) end(ctx context.Context) error {
	one := p.members[0]
	p.Prompt("lb1#", "pkill spa-server")
	if err := one.server.Stop(ctx); err != nil {
		return err
	}
	err := one.keepalived.HasSaid(ctx, "Entering FAULT STATE")
	if err := p.Verdict("keepalived takes "+shared+" from", one.Name(), err); err != nil {
		return err
	}
	if err := p.meet(p.alice, stage.Dark, shared); err != nil {
		return err
	}
	if err := p.knock(ctx, p.alice, "open", "--for", "10m"); err != nil {
		return err
	}
	return p.meet(p.alice, stage.Open, shared)
}
