package feed

import (
	"errors"

	"sallyport/firewall"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/server/control"
)

// DecisionOf returns an event as watchers see it.
func DecisionOf(e audit.Event) control.Decision {
	d := control.Decision{Time: e.Time, Verdict: e.Verdict.String(), Client: e.Client, From: e.From,
		Copied: e.Copied, Reason: e.Reason()}
	if refused, ok := errors.AsType[*spa.Refused](e.Err); ok && !refused.Time.IsZero() {
		d.Ahead = refused.Time.Sub(e.Time).Seconds()
	}
	if e.Knock == nil {
		return d
	}
	d.Command, d.Services = e.Knock.Type.String(), service.Names(e.Knock.Services)
	d.OldKey, d.OldGate = OldKey(e.Knock), e.Knock.OldGate
	d.LetIn = e.Knock.LetIn
	if e.Receipt.Status == spa.Granted {
		for _, g := range e.Receipt.Services {
			d.Until = append(d.Until, e.Receipt.Time.Add(g.For))
		}
	}
	if e.Err != nil && e.Verdict.Spent() { // in full
		d.Reason = e.Err.Error()
	}
	return d
}

// GrantsOf returns the grants of an event whose verdict is granted.
func GrantsOf(e audit.Event) []firewall.Grant {
	grants := make([]firewall.Grant, len(e.Receipt.Services))
	bits := uint8(0)
	if n := e.Receipt.LetIn; n.IsValid() && !n.IsSingleIP() {
		bits = uint8(n.Bits())
	}
	for i, g := range e.Receipt.Services {
		grants[i] = firewall.Grant{
			Client: e.Client, Service: e.Knock.Services[i].String(), Source: e.Receipt.Source, Bits: bits,
			Ports: g.Ports, Until: e.Receipt.Time.Add(g.For),
		}
	}
	return grants
}

// OldKey reports whether a knock was made with a client's key from before the last rotation.
func OldKey(k *spa.Knock) bool { return k.KeyID != k.Client.ID }
