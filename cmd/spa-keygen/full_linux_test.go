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
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID = "gw", "192.0.2.1", keys.NewServerID()
	alice := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"tcp/22"}}
	clients := filepath.Join(dir, config.ClientsDir)
	if err := errors.Join(os.Mkdir(clients, 0o750), keys.WriteGate(filepath.Join(dir, config.GateFile), keys.NewGateKey()),
		config.Create(dir, c), keys.WriteClient(clients, alice, true)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(clients, "alice.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := append(text, "#"+strings.Repeat("x", os.Getpagesize()-len(text)-1)...)
	if err := os.WriteFile(path, whole, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := lab.FillDisk(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
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
	if err := os.Link(copied, path); err != nil {
		t.Fatal(err)
	}
	if out, err := keygen("revoke", "alice"); err == nil || !strings.Contains(fmt.Sprint(err), copied) {
		t.Errorf("revoke beside a copy: %v\n%s", err, out)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	out, err := keygen("revoke", "alice")
	if _, gone := os.Stat(path); err != nil || !errors.Is(gone, os.ErrNotExist) ||
		!strings.Contains(out, "shuts the client out within a second or two") {
		t.Errorf("revoke: %v, the file: %v\n%s", err, gone, out)
	}
}
