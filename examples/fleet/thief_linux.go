package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/config"
	format "sallyport/spa/fleet"
	"sallyport/spa/server/setup"
)

// steal plays what a thief can do who has every file of web.
func (f *fleet) steal(ctx context.Context) error {
	key, err := setup.ReadFleetKey(place.Folder{Path: filepath.Join(f.Dir, "web")})
	if err != nil {
		return err
	}
	_, err = openBundle(f.bundle("db"), key)
	how := "sealed to another"
	switch {
	case err == nil:
		how, err = "opens it", errors.New("the key of web opens the bundle of db")
	case errors.Is(err, format.ErrSealed):
		err = nil
	}
	if err := f.Verdict("thief    tries web's key on db's bundle", how, err); err != nil {
		return err
	}
	f.Say("It opens web's bundle, which has alice's key for web. The stranger has bought that key, and knocks as " +
		"alice.")
	if err := f.impersonate(key); err != nil {
		return err
	}
	if err := f.opens(ctx, f.stranger, "web"); err != nil {
		return err
	}
	return f.silence(ctx, f.stranger, "db")
}

// openBundle opens the file of a bundle.
func openBundle(path string, key *age.HybridIdentity) (*format.Contents, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, err := format.Parse(text)
	if err != nil {
		return nil, err
	}
	return format.Open(b, key)
}

// impersonate gives the stranger profiles with what web has of alice: one for web, and one for db.
func (f *fleet) impersonate(key *age.HybridIdentity) error {
	c, err := openBundle(f.bundle("web"), key)
	if err != nil {
		return err
	}
	settings, err := config.Load(filepath.Join(f.Dir, "web"))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.Clients, func(c *keys.Client) bool { return c.Name == "alice" })
	if i < 0 {
		return errors.New("the bundle of web does not have alice")
	}
	hosts := filepath.Join(f.Dir, f.stranger.Name(), "hosts")
	if err := os.MkdirAll(hosts, 0o700); err != nil {
		return err
	}
	for _, gateway := range []string{"web", "db"} {
		p := &keys.Profile{Name: gateway, Address: address(gateway), KnockPorts: []uint16{settings.KnockPorts[0].Port},
			ServerID: settings.Fleet.ID.Server(gateway), Gate: c.Gates.Current, Client: "alice", ID: c.Clients[i].ID,
			Key: c.Clients[i].Key, Services: map[string][]string{"ssh": {"tcp/22"}}, Receipts: true}
		if err := keys.WriteProfile(hosts, p, false); err != nil {
			return err
		}
	}
	return nil
}
