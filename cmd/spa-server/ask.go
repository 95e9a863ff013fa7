package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
	"sallyport/spa/server/acts"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// ask sends a request to the running server and passes on its replies.
func ask(cmd *cobra.Command, dir string, r control.Request, each func(control.Reply) error) error {
	if r.Command == control.CommandRevoke || r.Command == control.CommandReload {
		r.By = acts.By() // for the audit log
	}
	err := askOnce(cmd, dir, r, each)
	if r.By != nil && control.IsUnknown(err) {
		r.By = nil
		err = askOnce(cmd, dir, r, each)
	}
	return askError(err)
}

func askOnce(cmd *cobra.Command, dir string, r control.Request, each func(control.Reply) error) error {
	client, err := dial(dir)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Ask(cmd.Context(), r, each)
}

// dial finds the server by the state directory of server.toml. If the server was started before that setting changed or
// the file was lost, dial looks in the default place.
func dial(dir string) (*control.Client, error) {
	old, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	state, missing := config.StateDir(dir)
	if missing != nil {
		state = old
	}
	client, err := control.Dial(state)
	if !errors.Is(err, control.ErrNotRunning) {
		return client, err
	}
	if client, err := control.Dial(old); err == nil {
		return client, nil
	}
	if running, ok := setup.RunningState(dir); ok {
		return control.Dial(running)
	}
	if missing != nil {
		return nil, loadError(missing)
	}
	return nil, err
}

// askError adds a hint.
func askError(err error) error {
	denied, isDenied := errors.AsType[*control.Denied](err)
	switch {
	case err == nil:
		return nil
	case isDenied:
		return cli.Fail(errors.New(denied.Text), denied.Hint)
	case errors.Is(err, control.ErrNotRunning):
		return cli.Fail(err, "systemctl start spa-server; journalctl -u spa-server shows why it stopped")
	case errors.Is(err, control.ErrSilent):
		return cli.Fail(err, "it hangs or was halted: systemctl restart spa-server (grants and sessions continue)")
	case errors.Is(err, control.ErrRefused), errors.Is(err, fs.ErrPermission):
		return cli.Fail(err, "run it as root: sudo spa-server …")
	}
	return err
}

// offset describes how far a clock is off: "43 s behind".
func offset(ahead float64) string {
	way := "ahead"
	if ahead < 0 {
		way, ahead = "behind", -ahead
	}
	if ahead < 0.05 {
		return "right"
	}
	digits := 0
	if ahead < 10 {
		digits = 1
	}
	return strconv.FormatFloat(ahead, 'f', digits, 64) + " s " + way
}

// grantLine returns a grant in one line.
func grantLine(g control.Grant, now time.Time) string {
	line := fmt.Sprintf("%s\t%s\t%s\t%s\t%s (%v)", g.Client, g.Service, g.Whom(), orNone(strings.Join(g.Ports, ",")),
		cli.Clock(g.Until, now), g.Until.Sub(now).Round(time.Second))
	switch {
	case g.Taken:
		return line + ", once: taken"
	case g.Once:
		return line + ", once"
	}
	return line
}
