package action

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"kernel.org/pub/linux/libs/security/libcap/cap"

	"sallyport/spa/config"
)

// account is who runs a program.
type account struct {
	name, home string
	uid, gid   int
	groups     []uint32
}

// Check returns what keeps the programs of a service from being started, or nil.
func Check(a config.Action) error {
	var errs []error
	for _, hook := range []Hook{Begin, End} {
		if command := hook.of(a); len(command) > 0 {
			if err := checkProgram(command[0]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", hook, err))
			}
		}
	}
	if _, err := lookUp(a.User); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// CheckSettings returns an error if a user other than root can change server.toml, and with it what runs as whom.
func CheckSettings(dir string) error {
	_, err := rootsOwn(filepath.Join(dir, config.FileName))
	return err
}

// lookUp finds a user.
func lookUp(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, fmt.Errorf("user: there is no user %s on this host", name)
	}
	who := account{name: name, home: u.HomeDir}
	who.uid, err = strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	groups, err3 := u.GroupIds()
	if err := errors.Join(err, err2, err3); err != nil {
		return account{}, fmt.Errorf("user %s: %w", name, err)
	}
	if who.gid = gid; who.uid == 0 && name != "root" {
		return account{}, fmt.Errorf("user: %s is root by another name: write root, or choose another user", name)
	}
	for _, text := range groups {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user %s: group %q: %w", name, text, err)
		}
		who.groups = append(who.groups, uint32(id))
	}
	return who, nil
}

// checkProgram returns an error unless the path leads to a program that only root can change.
func checkProgram(path string) error {
	info, err := rootsOwn(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no program %s", path)
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%s is not a program: it cannot be executed", path)
	}
	return nil
}

// mostLinks is how many symbolic links a path may have (path_resolution(7)).
const mostLinks = 40

// rootsOwn follows a path to its end and returns an error if a user other than root can change anything on the way: a
// directory, or what is at the end.
func rootsOwn(path string) (fs.FileInfo, error) {
	rest, at := strings.Split(strings.TrimPrefix(path, "/"), "/"), "/"
	info, err := rootsAlone(at)
	for links := 0; err == nil && len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		if info, err = rootsAlone(next); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > mostLinks {
			return nil, fmt.Errorf("%s: too many symbolic links", path)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return nil, err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = slices.Concat(strings.Split(strings.Trim(target, "/"), "/"), rest)
	}
	return info, err
}

func rootsAlone(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case owner != 0:
		return nil, fmt.Errorf("%s belongs to uid %d, who could put another program there: chown root %[1]s", path, owner)
	case info.IsDir() && info.Mode()&fs.ModeSticky != 0: // what is root's in it, only root can replace
	case info.Mode()&fs.ModeSymlink == 0 && info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("users other than root can write to %s, and could put another program there: "+
			"chmod go-w %[1]s", path)
	}
	return info, nil
}

// DropIn is the file that lets the systemd unit's server run programs as other users, and install the command for it.
const (
	DropIn  = "examples/actions/actions.conf"
	install = "install -D -m 644 " + DropIn + " /etc/systemd/system/spa-server.service.d/actions.conf && " +
		"systemctl daemon-reload"
)

// needed are the capabilities to start programs of other users, and to end them.
var needed = []cap.Value{cap.SETUID, cap.SETGID, cap.KILL}

// CheckRights returns an error if this process cannot become the users that run the programs.
func CheckRights(c *config.Config) error {
	var missing []string
	for _, value := range needed {
		if has, err := cap.GetProc().GetFlag(cap.Effective, value); err != nil || !has {
			missing = append(missing, strings.ToUpper(value.String()))
		}
	}
	if missing == nil {
		return nil
	}
	for _, s := range c.Services {
		if who, err := lookUp(s.Action.User); s.Action.Any() && err == nil && who.uid != os.Geteuid() {
			return fmt.Errorf("service.%s.user: the server cannot run programs as %s: it lacks %s; for its unit: %s",
				s.Name, who.name, strings.Join(missing, " and "), install)
		}
	}
	return nil
}
