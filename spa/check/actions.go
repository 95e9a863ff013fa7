package check

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sallyport/spa/action"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// checkActions reports programs of services that cannot be started, or that run with many rights.
func checkActions(c *config.Config) []Finding {
	var found []Finding
	some := false
	for _, s := range c.Services {
		if !s.Action.Any() {
			continue
		}
		some = true
		subject := "service." + s.Name
		if err := action.Check(s.Action); err != nil {
			found = append(found, Finding{
				Severity: Problem, Subject: subject,
				Text:   strings.ReplaceAll(err.Error(), "\n", "; ") + ": every knock for it is refused",
				Advice: "# fix that, then: spa-server reload",
			})
		}
		if weak := weakUser(s.Action.User); weak != "" {
			found = append(found, Finding{
				Severity: Warning, Subject: subject + ".user", Text: weak,
				Advice: "# use a user of its own for it, if it can do without",
			})
		}
	}
	if err := action.CheckSettings(c.Dir); some && err != nil && !errors.Is(err, fs.ErrNotExist) {
		found = append(found, Finding{
			Severity: Problem, Subject: config.FileName,
			Text:   err.Error() + ". It says what runs as whom, so the server does not start",
			Advice: "# make root its owner, and that of the directories above it",
		})
	}
	return found
}

// weakUser returns what the programs of a user can do beyond their purpose.
func weakUser(name string) string {
	switch name {
	case "root":
		return "root: whoever may knock for it starts a program that can change everything"
	case setup.SystemUser:
		return fmt.Sprintf("%s: the program can read the keys of all clients, as the server's user can", name)
	}
	return ""
}

// checkPrograms reports what the running server cannot start.
func checkPrograms(a *control.Actions) []Finding {
	if a == nil {
		return nil
	}
	var found []Finding
	for _, trouble := range []string{a.Trouble, a.Unsaved} {
		if trouble != "" {
			found = append(found, Finding{Severity: Problem, Subject: "programs", Text: trouble,
				Advice: "systemctl restart spa-server\n# grants and sessions continue"})
		}
	}
	if a.Failed > 0 {
		found = append(found, Finding{
			Severity: Problem, Subject: "programs",
			Text:   fmt.Sprintf("%d that were due at the end of a grant could not be started", a.Failed),
			Advice: "systemctl restart spa-server\n# starts them, once the cause is fixed; the log has it",
		})
	}
	return found
}
