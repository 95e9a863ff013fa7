package page

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"sallyport/spa/lab"
)

// wantSite serves the page as a site on the client's host: a link with a token works wherever the site is, the page
// refuses to work inside another, and it is shown again when the server sends browsers elsewhere and when it is gone.
func (v *view) wantSite() {
	v.Helper()
	dir := v.TempDir()
	v.keygen("page", "--dir", dir)
	var l net.Listener
	lab.Must(v, v.gw.Client.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:8080")
		return err
	}))
	var elsewhere atomic.Bool
	files := http.FileServer(http.Dir(dir))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == "/outside":
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(`<iframe src="./#spa1secret" width="600"></iframe>`))
		case strings.HasPrefix(path, "//"):
			http.ServeFile(w, r, dir+"/")
		case path == "/" && elsewhere.Load():
			http.Redirect(w, r, "/login", http.StatusFound)
		case path == "/login":
			_, _ = w.Write([]byte("Log in"))
		default:
			files.ServeHTTP(w, r)
		}
	})}
	go server.Serve(l)
	site := "http://127.0.0.1:8080/"
	v.browser.Go(site + "/elsewhere.example/#spa1secret")
	v.reads("The token of the link is below")
	v.wantScript(site+"/elsewhere.example/", "return location.href", "the address after a link")
	v.browser.Go(site + "outside")
	const inside = "return frames[0].document.getElementById('say').textContent + ' ' + frames[0].location.hash"
	lab.Eventually(v, "the page in a frame", func() bool {
		return v.browser.Run(inside) == "This page does not work inside another. "
	})
	v.browser.Go(site)
	v.reads("Add a gateway")
	got := v.browser.Run(`await navigator.serviceWorker.ready;
		for (let i = 0; i < 100 && !(await caches.match('./')); i++) await new Promise((r) => setTimeout(r, 100));
		return (await fetch('manifest.webmanifest')).ok`)
	if got != "true" {
		v.Errorf("%s: the page is not installed: %s", v.browser.Name(), got)
	}
	elsewhere.Store(true)
	v.browser.Go(site)
	v.browser.Run(`await fetch('./').catch(() => {}); await new Promise((r) => setTimeout(r, 500))`)
	lab.Must(v, server.Close())
	for _, at := range []string{site, site + "index.html"} {
		v.browser.Go(at)
		v.reads("Add a gateway")
	}
}
