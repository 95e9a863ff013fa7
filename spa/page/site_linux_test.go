package page

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"sallyport/spa/lab"
)

// served serves the page from a directory: a newer one if there is one, or a login instead.
type served struct {
	dir                     string
	page                    []byte
	newer, elsewhere, asked atomic.Bool
}

func (s *served) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page := s.page
	w.Header().Set("Content-Type", "text/html")
	switch path := r.URL.Path; {
	case path == "/outside":
		page = []byte(`<iframe src="./#spa1secret" width="600"></iframe>`)
	case path == "/" && s.elsewhere.Load():
		http.Redirect(w, r, "/login", http.StatusFound)
		return
	case path == "/" && s.newer.Load():
		page = bytes.Replace(page, []byte("<h1>Sallyport"), []byte("<h1>Sallyport, newer"), 1)
	case path == "/login":
		defer s.asked.Store(true)
		page = []byte("Log in")
	case path != "/" && !strings.HasPrefix(path, "//"):
		w.Header().Del("Content-Type")
		http.ServeFileFS(w, r, os.DirFS(s.dir), path[1:])
		return
	}
	_, _ = w.Write(page)
}

// serve serves HTTP on the client's host.
func (v *view) serve(addr string, h http.Handler) *http.Server {
	v.Helper()
	var l net.Listener
	lab.Must(v, v.gw.Client.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	server := &http.Server{Handler: h}
	go server.Serve(l)
	return server
}

// wantSite serves the page as a site on the client's host: a link with a token works wherever the site is, the page
// refuses to work inside another, a newer page takes its place, and what it has kept is shown when the server sends
// browsers elsewhere and when it is gone.
func (v *view) wantSite() {
	v.Helper()
	s := &served{dir: v.TempDir()}
	v.keygen("page", "--dir", s.dir)
	s.page = lab.Value(os.ReadFile(filepath.Join(s.dir, "index.html")))(v)
	server := v.serve("127.0.0.1:8080", s)
	at := "http://127.0.0.1:8080/"
	v.browser.Go(at + "/elsewhere.example/#spa1secret")
	v.reads("The token of the link is below")
	v.wantScript(at+"/elsewhere.example/", "return location.href", "the address after a link")
	v.browser.Go(at + "outside")
	const inside = "return frames[0].document.getElementById('say').textContent + ' ' + frames[0].location.hash"
	lab.Eventually(v, "the page in a frame", func() bool {
		return v.browser.Run(inside) == "This page does not work inside another. "
	})
	v.browser.Go(at)
	v.reads("Add a gateway")
	got := v.browser.Run(`await navigator.serviceWorker.ready;
		for (let i = 0; i < 100 && !(await caches.match('./')); i++) await new Promise((r) => setTimeout(r, 100));
		return (await fetch('manifest.webmanifest')).ok`)
	if got != "true" {
		v.Errorf("%s: the page is not installed: %s", v.browser.Name(), got)
	}
	s.newer.Store(true)
	lab.Eventually(v, "the newer page", func() bool {
		v.browser.Go(at)
		return strings.Contains(v.browser.Run("return document.body.innerText"), "Sallyport, newer")
	})
	s.elsewhere.Store(true)
	v.browser.Go(at)
	lab.Eventually(v, "the redirect to be followed", s.asked.Load)
	lab.Must(v, server.Close())
	for _, file := range []string{"", "index.html"} {
		v.browser.Go(at + file)
		v.reads("Sallyport, newer")
	}
}
