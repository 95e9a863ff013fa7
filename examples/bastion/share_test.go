package bastion

import (
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestShareInTheUnits: the units of the server and of the fleet's agent, with a real etcd, let a client in at a shared
// address, again after either was killed. They can write only where they must.
func TestShareInTheUnits(t *testing.T) {
	lab.NeedProgram(t, "etcd", "apt-get install etcd-server")
	lab.NeedProgram(t, "openssl", "apt-get install openssl")
	c := guarded(t)
	c.member()
	c.up()
	c.joins()
	config := filepath.Join(t.TempDir(), "spa")
	c.alice(config, "import", c.path("/root/office/ann.token"))
	knock := func() {
		t.Helper()
		for _, command := range []string{"open", "close"} {
			c.alice(config, command, "ssh", "--host", "prod/edge", "--timeout", lab.Patience.String())
		}
	}
	knock()
	for _, unit := range []string{"spa-fleet-agent.service", "spa-server.service"} {
		c.writesNowhere(unit)
		c.run("systemctl kill -s KILL --kill-whom=main " + unit)
		knock()
		if out := c.run("systemctl show -p NRestarts " + unit); out != "NRestarts=1\n" {
			t.Errorf("%s: %s", unit, out)
		}
	}
	if out := c.run("journalctl --sync; journalctl -b --no-pager -u spa-fleet-agent"); !strings.Contains(out,
		"no connection to the gateway's server: EOF") {
		t.Errorf("the journal of the agent does not say that the server was gone:\n%s", out)
	}
}

// member makes the gateway one that shares its address, on the page's way, with an office and an etcd on the same
// computer.
func (c *computer) member() {
	c.t.Helper()
	lab.Must(c.t, copyFile(agentUnit, c.path("/etc/systemd/system/spa-fleet-agent.service")))
	c.off(`export HOME=/root
systemctl disable spa-server.service # until the agent has made the directory of the bundle
useradd --system --no-create-home --shell /usr/sbin/nologin spa-fleet
install -d -m 755 /etc/spa-fleet
echo 'd /run/spa-share 2750 spa spa-fleet' > /etc/tmpfiles.d/spa-share.conf
mkdir /root/office
cd /root/office
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout etcd.key -out ca.pem -subj /CN=etcd \
	-addext subjectAltName=IP:127.0.0.1 2>/dev/null
install -m 644 ca.pem /etc/spa-fleet/
install -g spa-fleet -m 640 etcd.key /etc/spa-fleet/gw.key
spa-fleet init --name prod --domain example.net --service ssh=tcp/22 --admin anna
spa-server init --fleet > gw.line
spa-fleet gateway add gw gw.line --site edge --site-address 192.0.2.1 > added
eval "$(grep -o 'spa-server set .*' added)"
spa-server set fleet.local_clients=true fleet.bundle=/var/lib/spa-fleet/fleet.bundle
spa-server set fleet.share=/run/spa-share/share.sock fleet.taken=/run/spa-share/fleet.taken
spa-fleet client new ann --allow ssh --out ann.token
cat > /etc/spa-fleet/agent.toml <<END
version = 1
gateway = "gw"
from = "etcd://127.0.0.1:2379"
to = "/var/lib/spa-fleet/fleet.bundle"
share = "/run/spa-share/share.sock"
taken = "/run/spa-share/fleet.taken"
$(grep '^fleet = ' office.toml)
ca = "ca.pem"
cert = "ca.pem"
key = "gw.key"
END`)
}

// joins starts what the gateway shares its address by, after a boot.
func (c *computer) joins() {
	c.t.Helper()
	c.run(`cd /root/office
systemd-run --quiet --unit store etcd --data-dir /run/etcd --listen-client-urls https://127.0.0.1:2379 \
	--advertise-client-urls https://127.0.0.1:2379 --cert-file $PWD/ca.pem --key-file $PWD/etcd.key \
	--client-cert-auth --trusted-ca-file $PWD/ca.pem
spa-fleet publish --to etcd://127.0.0.1:2379 --ca ca.pem --cert ca.pem --key etcd.key
systemctl enable --now spa-fleet-agent
systemctl enable --now spa-server`)
}

// writesNowhere fails if even root could write to system directories from a unit's process. systemd 252 leaves /run
// writable, unless the unit names it: some of the other settings mount it.
func (c *computer) writesNowhere(unit string) {
	c.t.Helper()
	for _, dir := range []string{"/etc", "/run", "/run/lock", "/usr/bin", "/var/lib"} {
		out, err := c.try("nsenter --mount --target $(systemctl show --value -p MainPID " + unit + ") touch " + dir + "/x")
		if err == nil || !strings.Contains(out, "Read-only file system") {
			c.t.Errorf("%s can write to %s: %s", unit, dir, out)
		}
	}
}
