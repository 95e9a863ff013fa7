package stage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Manage runs spa-fleet on the host of the office and returns what it prints.
func (s *Stage) Manage(ctx context.Context, office *Host, args ...string) (string, error) {
	args = append(args, "--office", "office", "--identity", "admin.identity")
	return s.Command(ctx, office, "$", "", "spa-fleet", args...)
}

// Join makes a gateway with a service on tcp/22, and lets it join the office's fleet: it prints a line, with which the
// office prints a command. The gateway's name is the host's.
func (s *Stage) Join(ctx context.Context, office, host *Host, address string, more ...string) error {
	gateway := host.Name()
	out, err := s.Command(ctx, host, "#", "", "spa-server", "init", "--fleet", "--name", gateway, "--address", address,
		"--service", "ssh=tcp/22", "--config", gateway)
	s.Output(Short(out))
	if err != nil {
		return err
	}
	line := gateway + ".line"
	if err := os.WriteFile(filepath.Join(s.Dir, line), []byte(requestIn(out)), 0o644); err != nil {
		return err
	}
	out, err = s.Manage(ctx, office, append([]string{"gateway", "add", gateway, line}, more...)...)
	s.Output(Short(out))
	if err != nil {
		return err
	}
	set, err := settingsIn(out)
	if err != nil {
		return err
	}
	out, err = s.Command(ctx, host, "#", "", "spa-server", slices.Concat([]string{"set"}, set, []string{"--config",
		gateway})...)
	s.Output(Short(out))
	return err
}

// requestIn returns the line for the office in what init printed.
func requestIn(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "spagw1 ") {
			return line
		}
	}
	return ""
}

// settingsIn returns the settings in the command that the office printed for a gateway.
func settingsIn(text string) ([]string, error) {
	for line := range strings.Lines(text) {
		if _, settings, ok := strings.Cut(line, "spa-server set "); ok {
			return slices.DeleteFunc(strings.Fields(settings), func(word string) bool {
				return !strings.HasPrefix(word, "fleet.")
			}), nil
		}
	}
	return nil, errors.New("the office printed no command for the gateway")
}

// Short shortens the lines of a text: a gateway's recipient has 2,000 characters.
func Short(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if len(line) > 110 {
			line = line[:100] + " ...\n"
		}
		b.WriteString(line)
	}
	return b.String()
}
