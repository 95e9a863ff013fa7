package setup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// askWithin is how long a running server may take to report its status.
const askWithin = 5 * time.Second

// AskStatus queries the running server that has these settings.
func AskStatus(ctx context.Context, c *config.Config) (*control.Status, error) {
	client, err := control.Dial(c.State)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var status *control.Status
	err = client.Ask(ctx, control.Request{Command: control.CommandStatus}, func(r control.Reply) error {
		status = r.Status
		return nil
	})
	if err == nil && status == nil {
		err = control.ErrSilent
	}
	return status, err
}

// Loaded identifies the settings and gate keys in force, to compare them with the files on disk.
func Loaded(settings []byte, gates []spa.Gate) control.Loaded {
	sum := sha256.Sum256(settings)
	l := control.Loaded{Settings: hex.EncodeToString(sum[:]), Gates: []string{}}
	for _, g := range gates {
		l.Gates = append(l.Gates, g.Key.Fingerprint())
	}
	return l
}
