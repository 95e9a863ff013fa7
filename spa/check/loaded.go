package check

import (
	"context"
	"errors"
	"slices"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/home"
)

// checkLoaded looks whether the running server works by the files as they are. Single client files need no
// reload. Where the file of settings has a mistake, that has been said already.
func checkLoaded(ctx context.Context, c *config.Config, h *host, gates keys.Gates, mistaken bool) []Finding {
	if !h.running || h.ask == nil {
		return nil
	}
	status, err := h.ask(ctx, c)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return []Finding{{
			Severity: Problem, Subject: "spa-server",
			Text: "one runs here, and not with the state directory " + c.State +
				": it has other files, or those of before a change",
			Advice: "systemctl restart spa-server.service",
		}}
	case errors.Is(err, control.ErrSilent):
		return []Finding{{
			Severity: Problem, Subject: "spa-server",
			Text:   "it runs and does not answer: nobody can knock if it hangs",
			Advice: "systemctl restart spa-server.service",
		}}
	case err != nil:
		h.notSeen("what the running server works by", err)
		return nil
	}
	found := checkRunning(c, status)
	now := home.Loaded(c.Text(), spa.GatesOf(gates))
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
			Text:   "it has changed since the running server read it: tokens made from now on do not work yet",
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
