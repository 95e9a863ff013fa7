package page

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestPolicy: the page's own policy allows its script and its style by their hashes, and nothing else: no other script
// runs, and nothing is loaded from elsewhere.
func TestPolicy(t *testing.T) {
	page := string(HTML())
	policy := regexp.MustCompile(`Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(page)
	if policy == nil || !strings.HasPrefix(policy[1], "default-src 'none'; ") || strings.Contains(policy[1], "unsafe") ||
		strings.ContainsAny(policy[1], "*") || strings.Contains(policy[1], "http") {
		t.Fatalf("the policy is %q", policy)
	}
	for _, kind := range []string{"script", "style"} {
		found := regexp.MustCompile(`(?s)<`+kind+`>(.*?)</`+kind+`>`).FindAllStringSubmatch(page, -1)
		if len(found) != 1 {
			t.Fatalf("%d elements %s", len(found), kind)
		}
		sum := sha256.Sum256([]byte(found[0][1]))
		want := kind + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !strings.Contains(policy[1], want) {
			t.Errorf("the policy does not allow the page's %s: it lacks %s", kind, want)
		}
	}
	if m := regexp.MustCompile(`(?i)<(link|img|iframe|object|embed|base)\b|\son\w+=|\b(src|href)=|innerHTML|\beval\(`).
		FindString(page); m != "" {
		t.Errorf("the page has %q", m)
	}
}

// sources copies what the page is made of, with the vectors beside it, and installs what it needs. It returns a
// function that runs npm there.
func sources(t *testing.T) (dir string, npm func(args ...string)) {
	lab.NeedProgram(t, "node", "apt-get install nodejs")
	program := lab.NeedProgram(t, "npm", "apt-get install npm")
	dir = filepath.Join(t.TempDir(), "page")
	for _, part := range []string{"src", "test"} {
		lab.Must(t, os.CopyFS(filepath.Join(dir, part), os.DirFS(part)))
	}
	for _, file := range []string{"build.mjs", "package.json", "package-lock.json", ".npmrc"} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, file), lab.Value(os.ReadFile(file))(t), 0o644))
	}
	lab.Must(t, os.CopyFS(filepath.Join(dir, "..", "testdata"), os.DirFS("../testdata")))
	npm = func(args ...string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("npm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	return dir, npm
}

// TestPageIsBuilt: the page is what its sources make, and they pass their own tests by every vector of the protocol.
func TestPageIsBuilt(t *testing.T) {
	dir, npm := sources(t)
	npm("run", "build")
	npm("test")
	if built := lab.Value(os.ReadFile(filepath.Join(dir, "knock.html")))(t); !bytes.Equal(built, HTML()) {
		t.Error("knock.html is not what src makes: run `npm ci && npm run build` in spa/page")
	}
}
