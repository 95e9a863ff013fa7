package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
)

// The server reads settings and keys as its own user, even at the start: a file that only root can read would fail at
// the first reload. It opens the files of its state and the audit log once, as root or, if systemd took root's right to
// other users' files, as its own user.

// Either returns a function that calls open as this process and, if that is not permitted, as the server's user. Its
// error has the command that fixes it.
func Either(path string, open func() error) func() error {
	return func() error {
		err := sandbox.OrAs(SystemUser, open)
		if errors.Is(err, fs.ErrPermission) && (os.Geteuid() == 0 || isServer()) {
			return withMend(path, err)
		}
		return err
	}
}

// OpenRoot opens a directory of the configuration for later: the server's user may not be able to reach it by its path.
func OpenRoot(dir string) (root *os.Root, err error) {
	err = Either(dir, func() (err error) { root, err = os.OpenRoot(dir); return err })()
	return root, err
}

// withMend adds to a permission error the commands that let the server open the file at path.
func withMend(path string, err error) error {
	who := "root without CAP_DAC_OVERRIDE and for user " + ServerName()
	if isServer() {
		who = "user " + SystemUser
	}
	return fmt.Errorf("%w, for %s: %s", err, who, MendFile(path))
}

// MendFile returns the command that lets the server open or create a file in its state directory.
func MendFile(path string) string {
	owner, dir := "root", filepath.Dir(path) // root opens its own files, and only once
	if _, _, ok := Account(SystemUser); ok {
		owner = SystemUser
	}
	info, err := os.Lstat(path)
	if err == nil && info.IsDir() {
		return fmt.Sprintf("chown root:%s %s && chmod 750 %[2]s", owner, quote.Shell(path))
	}
	var commands []string
	if !mayUse(dir, MaySearch) {
		commands = append(commands, fmt.Sprintf("chown root:%s %s && chmod 750 %[2]s", owner, quote.Shell(dir)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		commands = append(commands, giveCommand(path, owner, owner+":"+owner, "600"))
	}
	return strings.Join(commands, " && ")
}

// LoadConfig reads the configuration of dir as the server will read it at a reload. If only root can read a file it
// accepts it anyway, and logs that a reload will fail: a wrong owner must not lock everyone out.
func LoadConfig(dir string, log *slog.Logger) (*config.Config, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := OpenRoot(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	if err != nil {
		return config.Load(dir) // its error names what is missing
	}
	defer root.Close()
	var c *config.Config
	err = AsServer(log, func() (err error) {
		c, err = config.LoadIn(root, dir)
		return Legible(filepath.Join(dir, config.FileName), err)
	})
	return c, err
}

// AsServer calls read as the server's user. If only root can read the file it calls it as root, and logs that.
func AsServer(log *slog.Logger, read func() error) error {
	later := sandbox.As(SystemUser, read)
	if !errors.Is(later, fs.ErrPermission) || os.Geteuid() != 0 {
		return later
	}
	if now := read(); now != nil {
		return later
	}
	log.Error("reload will fail: the server cannot read a file without root's rights", "error", later)
	return nil
}

// Legible adds to a permission error for server.toml the command that lets the server's user read it.
func Legible(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) || errors.Is(err, place.ErrUnreadable) {
		return err
	}
	uid, gid, unknown := sandbox.Becomes(SystemUser)
	command := fmt.Sprintf("chown root:%s %s && chmod 640 %[2]s", ServerName(), quote.Shell(path))
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err == nil && unknown == nil && !Permits(info, uid, gid, MaySearch) {
		command = HandOver(SystemUser, dir)
	}
	if uid == sandbox.Unnamed {
		command = MakeUser + " && " + HandOver(SystemUser, dir)
	}
	return fmt.Errorf("%w: the server reads it as user %s: %s", err, ServerName(), command)
}

// LoadClients reads the clients in dir, an absolute path, as the server's user, which reads them again when they
// change.
func LoadClients(dir string) (*keys.Registry, []error) {
	root, err := OpenRoot(dir)
	if err != nil {
		return keys.LoadRegistry(dir) // its error names what is missing
	}
	registry, problems := new(keys.Registry), []error(nil)
	if err := sandbox.As(SystemUser, func() error {
		registry, problems = keys.LoadRegistryIn(root, dir)
		return nil
	}); err != nil {
		problems = append(problems, err)
	}
	return registry, problems
}
