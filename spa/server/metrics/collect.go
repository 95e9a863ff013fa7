package metrics

import (
	"cmp"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/spa/audit"
	"sallyport/spa/server/control"
)

// collector passes a sample to Prometheus.
type collector struct{ page *Page }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spa_"+name, help, labels, nil)
}

// The metrics of a sample.
var (
	packets = describe("packets_total", "Packets examined, by verdict and reason.",
		"verdict", "reason")
	received = describe("capture_received_packets_total", "Packets seen on the knock ports.")
	passed   = describe("capture_passed_packets_total", "Packets passed on for a decision.")
	framed   = describe("capture_framed_packets_total", "Packets from browsers passed on for a decision: those in "+
		"STUN requests.")
	ignored = describe("capture_ignored_packets_total", "Packets that the capture ignored, by reason.",
		"reason")
	dropped = describe("capture_dropped_packets_total", "Packets that the kernel dropped because they arrived faster "+
		"than they were read. Knocks may be among them.")
	gated = describe("gate_in_kernel", "1 if the kernel drops forged knocks, 0 if each wakes the server.")
	shut  = describe("gate_dropped_packets_total", "Packets to the knock ports that the kernel dropped, by reason. "+
		"Apart from those without a head (cut), they are in spa_packets_total too.", "reason")
	grants  = describe("grants", "Live grants: one for each client, service and address.")
	clients = describe("clients", "Clients with a file, including revoked ones.")
	leftOut = describe("client_files_ignored", "Client files that are ignored because of a mistake or their mode: "+
		"these clients cannot knock.")
	floor = describe("floor_seconds", "Seconds for which all knocks are still refused, after a reboot or with a new "+
		"journal. 0: knocks are accepted.")
	live    = describe("journal_nonces", "Used packets that the replay journal remembers.")
	records = describe("journal_used_slots", "Slots of the replay journal that are in use.")
	room    = describe("journal_slots", "Slots that the replay journal has.")
	faults  = describe("journal_faults_total", "Packets that were refused because the replay journal could not be "+
		"used.")
	damaged = describe("journal_damaged", "1 if the replay journal was damaged when the server started, and is a new "+
		"one.")
	inPlace = describe("guard_in_place", "1 if the guard is in place, 0 if guarded ports may be open.")
	putBack = describe("guard_put_back_total", "How often the guard was put back after another tool had changed it.")
	kept    = describe("keeper_alive", "0 if the guard's keeper has ended, and another tool could flush the guard "+
		"while no server runs. 1: it lives, or this guard needs none.")
	lost     = describe("audit_lost_lines_total", "Lines of the audit log that could not be written.")
	moved    = describe("audit_moved", "1 if the audit log continues in a file that was moved away.")
	programs = describe("programs_total", "Programs of services, by the occasion and what became of them.",
		"hook", "result")
	queued = describe("programs_waiting", "Programs of services that wait to be started.")
	stuck  = describe("programs_not_started", "Programs for the end of a grant that could not be started.")
	runner = describe("program_runner_alive", "0 if the process that starts the programs of services has ended. "+
		"1: it lives, or no service has a program.")
	recoveryUses    = describe("recovery_uses_total", "Uses of recovery keys, over all starts of the server.")
	recoveryRefused = describe("recovery_refused_total", "Knocks with recovery keys that had no uses left.")
	recoveryKeys    = describe("recovery_keys", "Clients with a recovery key that are not revoked.")
	recoverySpent   = describe("recovery_keys_spent", "Clients with a recovery key that has no uses left.")

	bundleSerial = describe("fleet_bundle_serial", "Serial of the fleet's bundle in force. 0: there is none, and no "+
		"client of the fleet can knock.")
	bundleAge    = describe("fleet_bundle_age_seconds", "Seconds since the office has issued the bundle in force.")
	bundleOld    = describe("fleet_bundle_old", "1 if the bundle in force is older than max_age, or there is none.")
	bundleBad    = describe("fleet_bundles_refused_total", "Bundles that were offered and refused, by reason.", "reason")
	sharedJoined = describe("fleet_shared_joined", "Of gateways that share an address: 1 if the store answers. 0: "+
		"clients of the fleet cannot knock here, or are decided by this gateway alone.")
	sharedAgent   = describe("fleet_shared_agent_connected", "1 if the agent that reaches the store is connected.")
	sharedMembers = describe("fleet_shared_members", "Gateways of the site that take part, with this one.")
	sharedWaiting = describe("fleet_shared_waiting", "Packets that wait for the store.")
	sharedTotal   = describe("fleet_shared_total", "What happened because of the other gateways of the site: packets, "+
		"and what was installed, ended or lost here.", "what")

	build = describe("build_info", "Always 1; the version of the program and of Go, and the architecture.", "version",
		"go_version", "architecture")
	start        = describe("start_time_seconds", "When the server started, in seconds since 1970.")
	clientTotal  = describe("client_packets_total", "Used packets by client and verdict.", "client", "verdict")
	clientGrants = describe("client_grants", "Live grants, by client.", "client")
)

// Describe sends nothing: the descriptions come with the values, and Register cannot ask for those before the server
// runs.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the values of a sample.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := c.page.sample()
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, p := range s.Packets {
		count(packets, p.Packets, p.Verdict.String(), p.Reason)
	}
	count(received, s.Capture.Received)
	count(passed, s.Capture.Passed)
	count(framed, s.Capture.Framed)
	count(dropped, s.Capture.Dropped)
	for reason, n := range s.Capture.Ignored {
		count(ignored, n, reason)
	}
	gauge(gated, truth(s.Gate.Kernel))
	for reason, n := range s.Gate.Dropped {
		count(shut, n, reason)
	}
	gauge(grants, float64(s.Live))
	gauge(clients, float64(len(s.Clients)))
	gauge(leftOut, float64(s.LeftOut))
	gauge(floor, max(0, s.Floor.Seconds()))
	gauge(live, float64(s.Journal.Live))
	gauge(records, float64(s.Journal.Records))
	gauge(room, float64(s.Journal.Room))
	gauge(damaged, truth(s.Journal.Damaged))
	count(faults, s.Journal.Faults)
	gauge(inPlace, truth(s.Guard.InPlace))
	gauge(kept, truth(s.Guard.Kept))
	count(putBack, s.Guard.PutBack)
	count(lost, s.Lost)
	gauge(moved, truth(s.LogMoved))
	count(recoveryUses, s.Recovery.Used)
	count(recoveryRefused, s.Recovery.Refused)
	gauge(recoveryKeys, float64(s.Recovery.Keys))
	gauge(recoverySpent, float64(s.Recovery.Spent))
	gauge(build, 1, c.page.version, runtime.Version(), runtime.GOARCH)
	gauge(start, float64(c.page.start.UnixMilli())/1000)
	collectActions(cmp.Or(s.Actions, &control.Actions{}), count, gauge) // without programs: zeros, and nothing is wrong
	collectFleet(s.Fleet, count, gauge)
	if c.page.byClient == nil {
		return
	}
	c.page.byClient.report(s.Clients, func(client string, v audit.Verdict, n uint64) {
		count(clientTotal, n, client, v.String())
	})
	held := make(map[string]int)
	for _, client := range s.Grants {
		held[client]++
	}
	for client, n := range held {
		gauge(clientGrants, float64(n), client)
	}
}

// collectActions tells what became of the programs of services, which it does not name.
func collectActions(a *control.Actions, count func(*prometheus.Desc, uint64, ...string),
	gauge func(*prometheus.Desc, float64, ...string)) {
	became := make(map[[2]string]uint64)
	for _, hook := range []string{"run", "run_after"} { // what was never seen cannot be seen rising
		for _, result := range []string{"started", "failed", "ended", "killed", "timed out", "lost"} {
			became[[2]string{hook, result}] = 0
		}
	}
	for _, c := range a.Counts {
		became[[2]string{c.Hook, c.What}] += c.Count
	}
	for labels, n := range became {
		count(programs, n, labels[:]...)
	}
	gauge(queued, float64(a.Waiting))
	gauge(stuck, float64(a.Failed))
	gauge(runner, truth(a.Trouble == ""))
}

// collectFleet sends what is known of the fleet's bundle, if there is a fleet.
func collectFleet(f *control.Fleet, count func(*prometheus.Desc, uint64, ...string),
	gauge func(*prometheus.Desc, float64, ...string)) {
	if f == nil {
		return
	}
	gauge(bundleSerial, float64(f.Serial))
	gauge(bundleAge, f.Age)
	gauge(bundleOld, truth(f.Old || f.Serial == 0))
	for reason, n := range f.Refused {
		count(bundleBad, n, reason)
	}
	if h := f.Shared; h != nil {
		gauge(sharedJoined, truth(h.Joined))
		gauge(sharedAgent, truth(h.Connected))
		gauge(sharedMembers, float64(len(h.Members)))
		gauge(sharedWaiting, float64(h.Waiting))
		for what, n := range h.Counts {
			count(sharedTotal, n, what)
		}
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

var _ prometheus.Collector = collector{}
