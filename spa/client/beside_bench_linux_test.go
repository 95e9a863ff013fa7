package client_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// BenchmarkFirstByte measures spa-client connect from its start to the first echoed byte, over paths with a delay each
// way. If SALLYPORT_OTHER is a directory with another spa-client, the two take turns. It counts the second sockets that
// were needed, and the SYNs that got no answer, since they came before the grant.
func BenchmarkFirstByte(b *testing.B) {
	for _, delay := range []time.Duration{10 * time.Millisecond, 50 * time.Millisecond, 150 * time.Millisecond} {
		b.Run(fmt.Sprintf("each way=%v", delay), func(b *testing.B) {
			g, p := benched(b, delay)
			clients := map[string]string{"this": g.Bin}
			if dir := os.Getenv("SALLYPORT_OTHER"); dir != "" {
				clients["other"] = dir
			}
			took, second, lost := map[string][]time.Duration{}, map[string]int{}, map[string]int{}
			for b.Loop() {
				for name, dir := range clients {
					p.forget(nil)
					took[name] = append(took[name], firstByte(b, g, dir))
					tried, again, seen := p.counts()
					second[name] += tried - 1
					lost[name] += tried + again - seen[synAck]
				}
			}
			for name, all := range took {
				slices.Sort(all)
				for _, per := range []int{50, 90, 99} {
					b.ReportMetric(float64(all[(len(all)-1)*per/100].Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, per))
				}
				b.ReportMetric(1000*float64(second[name])/float64(len(all)), name+"-second-per-1000")
				b.ReportMetric(1000*float64(lost[name])/float64(len(all)), name+"-dropped-per-1000")
			}
		})
	}
}

// benched returns a running gateway behind a path, without the limits that a bench would reach.
func benched(b *testing.B, delay time.Duration) (*lab.Gateway, *path) {
	b.Helper()
	g := lab.NewGateway(b, lab.Programs(b), "ssh=tcp/22")
	limit(b, g, map[string]int{"live_nonces": 4096, "grants": 1000, "grants_per_hour": 1_000_000})
	p := newPath(b, g, delay)
	behindPath(b, g, far4)
	lab.Value(lab.EchoServer(g.Host, ":22"))(b)
	g.Start()
	return g, p
}

// behindPath makes the client use the gateway by another address.
func behindPath(t testing.TB, g *lab.Gateway, address string) {
	t.Helper()
	profile := lab.Value(keys.ReadProfile(filepath.Join(g.Home, "hosts", "gw.toml")))(t)
	profile.Address = address
	g.Import(g.Home, profile.Token())
}

// firstByte runs a client to the first byte that comes back.
func firstByte(b *testing.B, g *lab.Gateway, dir string) time.Duration {
	b.Helper()
	cmd := exec.Command(filepath.Join(dir, "spa-client"), "--config", g.Home, "connect", "ssh", "--host", "gw",
		"--source", "observed")
	in, out := lab.Value(cmd.StdinPipe())(b), lab.Value(cmd.StdoutPipe())(b)
	cmd.Stderr = os.Stderr
	begun := time.Now()
	lab.Must(b, g.Client.Start(cmd))
	_, err := io.WriteString(in, "x")
	lab.Must(b, err)
	lab.Value(bufio.NewReader(out).ReadByte())(b)
	took := time.Since(begun)
	in.Close()
	lab.Must(b, cmd.Wait())
	return took
}
