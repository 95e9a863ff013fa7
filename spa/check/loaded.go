package check

import (
	"context"
	"errors"
	"slices"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// checkLoaded checks whether the running server uses the current files. Single client files need no reload. A mistake
// in the settings file has already been reported.
func checkLoaded(ctx context.Context, c *config.Config, h *host, gates keys.Gates, mistaken bool) []Finding {
	if !h.running || h.ask == nil {
		return nil
	}
	status, err := h.ask(ctx, c)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return []Finding{{
			Severity: Problem, Subject: "spa-server",
			Text: "one is running here, but not with the state directory " + c.State +
				": it uses other files, or files from before a change",
			Advice: "systemctl restart spa-server.service",
		}}
	case errors.Is(err, control.ErrSilent):
		return []Finding{{
			Severity: Problem, Subject: "spa-server",
			Text:   "it is running but does not answer: if it hangs, no client can knock",
			Advice: "systemctl restart spa-server.service",
		}}
	case err != nil:
		h.notSeen("what the running server works by", err)
		return nil
	}
	found := checkRunning(c, status)
	now := setup.Loaded(c.Text(), spa.GatesOf(gates))
	if !mistaken && status.Loaded.Settings != now.Settings {
		found = append(found, Finding{
			Severity: Warning, Subject: config.FileName,
			Text:   "it has changed since the running server read it, and has no effect yet",
			Advice: "spa-server reload",
		})
	}
	if !gates.Current.IsZero() && !slices.Equal(status.Loaded.Gates, now.Gates) {
		found = append(found, Finding{
			Severity: Warning, Subject: config.GateFile,
			Text:   "it has changed since the running server read it: new tokens do not work yet",
			Advice: "spa-server reload",
		})
	}
	if h.version != "" && status.Version != h.version {
		found = append(found, Finding{
			Severity: Warning, Subject: "spa-server",
			Text:   "version " + status.Version + " runs, and " + h.version + " is installed",
			Advice: "systemctl restart spa-server.service",
		})
	}
	return found
}
