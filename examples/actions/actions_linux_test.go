package actions

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// page is a gateway with the services of README.md, whose programs outside of this directory are stubs that write down
// how they were called.
type page struct {
	*testing.T
	gw  *lab.Gateway
	dir string // of the programs
}

func newPage(t *testing.T) *page {
	lab.NeedRoot(t)
	p := &page{T: t, gw: lab.NewGateway(t, lab.Programs(t), "ssh=tcp/22"), dir: t.TempDir()}
	lab.Must(t, os.Chmod(p.dir, 0o755))
	for _, dir := range []string{p.in("from"), p.in("to"), p.in("log")} {
		lab.Must(t, os.Mkdir(dir, 0o755))
	}
	lab.Must(t, os.Chmod(p.in("log"), 0o777))
	lab.Must(t, os.Chmod(filepath.Dir(p.dir), 0o755))
	for _, stub := range []string{"systemctl", "aws", "sendmail"} {
		read := ""
		if stub == "sendmail" {
			read = "cat; "
		}
		p.write(stub, "#!/bin/sh\n{ echo \"$(id -un) $*\"; "+read+"} >>"+p.in("log/"+stub)+"\n")
	}
	for _, name := range []string{"backup", "security-group", "message"} {
		text := string(lab.Value(os.ReadFile(name))(t))
		text = strings.ReplaceAll(text, "exec aws", "exec "+p.in("aws"))
		p.write(name, strings.ReplaceAll(text, "sendmail -t", p.in("sendmail")+" -t"))
	}
	readme := string(lab.Value(os.ReadFile("README.md"))(t))
	_, services, _ := strings.Cut(readme, "```toml\n")
	services, _, ok := strings.Cut(services, "```")
	if !ok {
		t.Fatal("README.md has no settings")
	}
	services = strings.NewReplacer("/usr/local/lib/spa", p.dir, "/usr/bin/systemctl", p.in("systemctl"), "/srv/data",
		p.in("from"), "/var/backups/data", p.in("to"), `user = "backup"`, `user = "root"`, `user = "cloud"`,
		`user = "nobody"`).Replace(services)
	settings := filepath.Join(p.gw.Config, "server.toml")
	lab.Must(t, os.WriteFile(settings, append(lab.Value(os.ReadFile(settings))(t), "\n"+services...), 0o640))
	token := p.gw.Enrol("ops", "restart-web,backup,database,console")
	p.gw.Import(p.in("home"), token)
	p.gw.Start()
	return p
}

func (p *page) in(name string) string { return filepath.Join(p.dir, name) }

func (p *page) write(name, text string) {
	p.Helper()
	lab.Must(p, os.WriteFile(p.in(name), []byte(text), 0o755))
}

// knock runs a command of spa-client.
func (p *page) knock(command, service string) string {
	p.Helper()
	out, code := lab.Run(p, p.gw.Client, p.gw.Command("spa-client", command, service, "--host", "gw",
		"--config", p.in("home"), "--timeout", lab.Patience.String()))
	if code != 0 {
		p.Fatalf("spa-client %s %s: exit %d\n%s\n%s", command, service, code, out, p.gw.Log())
	}
	return out
}

// logged waits until a stub was called with these words.
func (p *page) logged(stub string, words ...string) {
	p.Helper()
	var text []byte
	for _, want := range words {
		lab.Eventually(p, fmt.Sprintf("%s: %s", stub, want), func() bool {
			text, _ = os.ReadFile(p.in("log/" + stub))
			return strings.Contains(string(text), want)
		})
	}
}

// TestRecipes: each service of the page does what the page says.
func TestRecipes(t *testing.T) {
	p := newPage(t)
	out := p.knock("open", "restart-web")
	if !strings.Contains(out, "restart-web was started on gw for 192.0.2.2 until") {
		t.Errorf("got %q", out)
	}
	p.logged("systemctl", "root restart apache2\n")

	lab.Must(t, os.WriteFile(p.in("from/data"), []byte("precious"), 0o600))
	p.knock("open", "backup")
	var archives []string
	lab.Eventually(t, "an archive", func() bool {
		archives, _ = filepath.Glob(p.in("to/backup-*.tar.gz"))
		return len(archives) == 1
	})

	p.knock("open", "database")
	p.logged("aws", "nobody ec2 authorize-security-group-ingress --group-id sg-0123456789abcdef0 --ip-permissions "+
		"IpProtocol=tcp,FromPort=5432,ToPort=5432,IpRanges=[{CidrIp=192.0.2.2/32}]\n")
	p.knock("close", "database")
	p.logged("aws", "nobody ec2 revoke-security-group-ingress --group-id sg-0123456789abcdef0 --ip-permissions "+
		"IpProtocol=tcp,FromPort=5432,ToPort=5432,IpRanges=[{CidrIp=192.0.2.2/32}]\n")

	out = p.knock("open", "console")
	if !strings.Contains(out, "console (tcp/8443) is open, and its program was started, on gw") {
		t.Errorf("got %q", out)
	}
	p.logged("sendmail", "nobody -t\n", "To: root\n", "Subject: ops opened console\n", "From 192.0.2.2, until 20")
}
