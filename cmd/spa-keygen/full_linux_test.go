package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestFullDisk: if a client cannot be marked as revoked even in place, its file is removed, which shuts it out too. A
// rotation changes nothing, and says how to shut it out.
func TestFullDisk(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID = "gw", "192.0.2.1", keys.NewServerID()
	alice := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"tcp/22"}}
	clients := filepath.Join(dir, config.ClientsDir)
	lab.Must(t, errors.Join(os.Mkdir(clients, 0o750), config.Create(dir, c), keys.WriteClient(clients, alice, true),
		keys.WriteGate(filepath.Join(dir, config.GateFile), keys.NewGateKey())))
	path := filepath.Join(clients, "alice.toml")
	text, err := os.ReadFile(path)
	lab.Must(t, err)
	whole := append(text, "#"+strings.Repeat("x", os.Getpagesize()-len(text)-1)...)
	lab.Must(t, os.WriteFile(path, whole, 0o640))
	lab.Must(t, lab.FillDisk(filepath.Join(dir, "ballast")))
	keygen := func(args ...string) (string, error) {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append(args, "--config", dir))
		err := root.Execute()
		return out.String(), err
	}
	_, err = keygen("rotate", "alice", "--overlap", "0")
	var exit *cli.Exit
	if !errors.Is(err, place.ErrFull) || !errors.As(err, &exit) || !strings.Contains(exit.Hint,
		"spa-keygen revoke alice") {
		t.Errorf("rotate: %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("rotate left %d bytes (%v)", len(now), err)
	}
	copied := filepath.Join(clients, "alice-old.toml")
	if err := os.Rename(path, copied); err != nil { // the disk has no room for both
		t.Fatal(err)
	}
	lab.Must(t, os.Link(copied, path))
	if out, err := keygen("revoke", "alice"); err == nil || !strings.Contains(fmt.Sprint(err), copied) {
		t.Errorf("revoke beside a copy: %v\n%s", err, out)
	}
	lab.Must(t, os.Remove(copied))
	out, err := keygen("revoke", "alice")
	if _, gone := os.Stat(path); err != nil || !errors.Is(gone, os.ErrNotExist) ||
		!strings.Contains(out, "shuts the client out within a second or two") {
		t.Errorf("revoke: %v, the file: %v\n%s", err, gone, out)
	}
}
