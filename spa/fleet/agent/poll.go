package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"sallyport/keys/place"
	"sallyport/spa/fleet"
)

// errSame means that there is nothing new.
var errSame = errors.New("not changed")

// anew is how many looks may pass between two that read everything. A source is not trusted: it may have said of
// something else that it was the version that is there now.
const anew = 60

// poll calls look at once and then every interval. Look returns errSame where there is nothing new; with all, it
// returns what is there in any case.
func poll(ctx context.Context, every time.Duration, take func([]byte) error, trouble func(error),
	look func(ctx context.Context, all bool) ([]byte, error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for since := anew; ; since++ {
		text, err := look(ctx, since >= anew)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errSame):
			trouble(nil)
		case err != nil:
			trouble(err)
		default:
			if since = 0; take(text) != nil {
				since = anew
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// File is a bundle in a directory that another program or a network file system fills: changes there are found by
// looking, because not every file system reports them.
type File struct {
	Path  string
	Every time.Duration
}

// Follow implements Source.
func (f File) Follow(ctx context.Context, take func([]byte) error, trouble func(error)) {
	var seen os.FileInfo
	poll(ctx, f.Every, take, trouble, func(_ context.Context, all bool) ([]byte, error) {
		fi, err := os.Stat(f.Path)
		if err != nil {
			return nil, err
		}
		if !all && seen != nil && os.SameFile(seen, fi) && seen.ModTime().Equal(fi.ModTime()) &&
			seen.Size() == fi.Size() {
			return nil, errSame
		}
		text, err := place.ReadFile(f.Path, fleet.MaxFile)
		if err == nil {
			seen = fi
		}
		return text, err
	})
}

// Web is a bundle on a web server.
type Web struct {
	URL    string // https
	Client *http.Client
	Every  time.Duration
}

// Follow implements Source. It transfers a bundle only if it has changed since the last time (ETag, RFC 9110), or if
// it could not be taken, and now and then anyway.
func (w Web) Follow(ctx context.Context, take func([]byte) error, trouble func(error)) {
	var tag string
	poll(ctx, w.Every, take, trouble, func(ctx context.Context, all bool) ([]byte, error) {
		if all {
			tag = ""
		}
		text, now, err := w.get(ctx, tag)
		if err == nil {
			tag = now
		}
		return text, err
	})
}

func (w Web) get(ctx context.Context, tag string) (text []byte, now string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.URL, nil)
	if err != nil {
		return nil, "", err
	}
	if tag != "" {
		request.Header.Set("If-None-Match", tag)
	}
	r, err := w.Client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer r.Body.Close()
	if r.StatusCode == http.StatusNotModified {
		return nil, "", errSame
	}
	if r.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s answers %s", w.URL, r.Status)
	}
	text, err = io.ReadAll(io.LimitReader(r.Body, fleet.MaxFile+1))
	if err != nil {
		return nil, "", fmt.Errorf("reading %s: %w", w.URL, err)
	}
	return text, r.Header.Get("ETag"), nil
}
