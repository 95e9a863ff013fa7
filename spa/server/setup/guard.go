package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa/config"
)

// Guard loads the guard at boot, whatever state the state directory is in, and reports what it did.
func Guard(ctx context.Context, c *config.Config, log *slog.Logger) (string, error) {
	done, err := guardIn(ctx, c, false, log)
	if err == nil || errors.Is(err, firewall.ErrForeign) {
		return done, err
	}
	stopgap, failed := stopgapState()
	if failed != nil {
		return "", err
	}
	elsewhere := *c
	elsewhere.State = stopgap
	done, failed = guardIn(ctx, &elsewhere, true, log)
	if failed != nil {
		return "", errors.Join(err, fmt.Errorf("also failed with another state directory: %w", failed), os.RemoveAll(stopgap))
	}
	log.Error("the state directory is unusable: the guard is loaded without earlier grants, and the server will not "+
		"start until this is fixed",
		"state", c.State, "error", err)
	return done, nil
}

// stopgapState makes a state directory for a guard if that of server.toml is missing, full or damaged. It belongs to
// this network namespace and, like the guard, is gone after the next boot. A guard that systemd starts as another user
// than root has a directory in memory for it.
func stopgapState() (string, error) {
	if os.Geteuid() != 0 {
		dir := os.Getenv("RUNTIME_DIRECTORY")
		if dir == "" {
			return "", errors.New("only root has another state directory")
		}
		return os.MkdirTemp(dir, "state")
	}
	namespace, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	dir := fmt.Sprintf("/run/spa-%d", namespace.Sys().(*syscall.Stat_t).Ino)
	info, err := os.Lstat(dir)
	if err == nil && (info.Mode() != fs.ModeDir|0o700 || info.Sys().(*syscall.Stat_t).Uid != 0) {
		err = os.RemoveAll(dir) // it belongs to another user, or is not ours
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}

// Teardown removes the guard. The server's user may have made the state directory unusable, and must not keep root from
// that: then it reports what is wrong, and the guard is gone.
func Teardown(state string) (unusable, err error) {
	unusable = firewall.Teardown(state)
	if unusable == nil || errors.Is(unusable, firewall.ErrForeign) || os.Geteuid() != 0 {
		return nil, unusable
	}
	elsewhere, err := stopgapState()
	if err != nil {
		return nil, errors.Join(unusable, err)
	}
	if err := firewall.Teardown(elsewhere); err != nil {
		return nil, unusable
	}
	return unusable, nil
}

// starts is how long a running server may take until its guard is in place.
const starts = 10 * time.Second

// awaitGuard waits for the running server to load the guard, and reports whether it did: the lock may be held by
// another process, or by a server that hangs.
func awaitGuard(ctx context.Context, c *config.Config) bool {
	ctx, cancel := context.WithTimeout(ctx, starts)
	defer cancel()
	for {
		if there, err := firewall.Stands(); there && err == nil || serverGuards(ctx, c) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serverGuards reports whether the running server says that its guard is in place. Only root sees one of legacy
// iptables.
func serverGuards(ctx context.Context, c *config.Config) bool {
	if os.Geteuid() == 0 {
		return false
	}
	status, err := AskStatus(ctx, c)
	return err == nil && !status.Firewall.Missing && status.Firewall.Backend == firewall.BackendIptables &&
		len(status.Guards) > 0
}

// guards reports whether the settings are for a guard that shuts ports.
func guards(c *config.Config) bool {
	return c.Firewall.Backend != "dry-run" && c.Firewall.Mode != "admit" && len(c.Services) > 0
}

func guardIn(ctx context.Context, c *config.Config, stopgap bool, log *slog.Logger) (string, error) {
	lock, err := Lock(c.State)
	if errors.Is(err, ErrRunning) && (!guards(c) || awaitGuard(ctx, c)) {
		return "the guard is managed by the running spa-server", nil
	}
	if err != nil {
		return "", err
	}
	defer lock.Close()
	clients, problems := LoadClients(filepath.Join(c.Dir, config.ClientsDir))
	defer clients.Close()
	loading := Loading{Stopgap: stopgap, Now: time.Now, Log: log}
	if found := JoinFleet(c, clients, log, time.Now()); found != nil {
		loading.Rekeyed = found.Rekeyed
		if found.Best() == nil {
			log.Error("no bundle of the fleet can be used: its clients' grants end", "error",
				errors.Join(found.Key, found.Refused))
		}
	}
	for _, problem := range problems {
		log.Error("client file ignored: this client cannot knock until it is fixed", "error", problem)
	}
	fw, err := OpenGuard(ctx, c, clients, loading)
	if err != nil {
		return "", err
	}
	defer fw.Close()
	return "the guard is in place: " + fw.Describe(), nil
}

// Loading describes how a guard is loaded.
type Loading struct {
	// Confirm, if not zero, is how long a guard may stay without a new connection through a grant.
	Confirm time.Duration
	// ConfirmBy is the client whose connection that must be; empty: any.
	ConfirmBy string
	// Stopgap is a guard without earlier grants and flows, whose state is not the configured one.
	Stopgap bool
	Rekeyed map[string]time.Time // see Bundles
	Left    func()               // see firewall.Config
	Now     func() time.Time
	Log     *slog.Logger
}

// OpenGuard opens the firewall and loads the guard. Except for a trial or a stopgap it then saves the settings for the
// next boot: if that fails it logs the error, and the guard stays.
func OpenGuard(ctx context.Context, c *config.Config, clients *keys.Registry, l Loading) (*firewall.Firewall, error) {
	fc := FirewallConfig(c, clients, l.Now)
	fc.NoCarry, fc.Left, fc.ConfirmBy = l.Stopgap, l.Left, l.ConfirmBy
	fc.Keep = keepAtStart(c, clients, l.Rekeyed, l.Now)
	for client := range clients.All() {
		fc.Networks = fc.Networks || client.LetsInMore()
	}
	fw, err := firewall.New(fc, l.Log)
	if at, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrPermission) {
		return nil, withMend(at.Path, err)
	}
	if err != nil {
		return nil, err
	}
	if err := fw.Load(ctx, l.Confirm, l.Now()); err != nil {
		return nil, errors.Join(err, fw.Close())
	}
	if l.Confirm > 0 || l.Stopgap || isServer() { // root saves them for it: see Remember
		return fw, nil
	}
	if err := SaveSettings(c, l.Now()); err != nil {
		l.Log.Warn("the settings could not be saved: if server.toml has a mistake at the next boot, an older guard or none "+
			"will be loaded", "error", err)
	}
	return fw, nil
}
