package firewall

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// BenchmarkGrantWide measures grants of as many ports as a client may ask for at once: other clients wait for them. The
// time of the processor says more than that on the clock if the machine is busy.
func BenchmarkGrantWide(b *testing.B) {
	for _, backend := range []string{BackendNftables, BackendIptables} {
		for _, fresh := range []bool{true, false} {
			b.Run(backend+"/"+map[bool]string{true: "fresh", false: "refresh"}[fresh], func(b *testing.B) {
				f := benched(b, 1, func(c *Config) {
					c.Backend, c.Guarded = backend, []service.Ports{ports("tcp/22"), ports("tcp/10000-18191")}
				})
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				var took, cpu []time.Duration
				for i := 0; b.Loop(); i++ {
					client := 0
					if fresh {
						client = i
					}
					gs, used, start := wideGrants(client), threadTime(b), time.Now()
					lab.Must(b, f.Grant(b.Context(), gs, start))
					took, cpu = append(took, time.Since(start)), append(cpu, threadTime(b)-used)
					if fresh {
						lab.Value(f.Revoke(b.Context(), Match{Client: gs[0].Client}, time.Now()))(b)
					}
				}
				slices.Sort(took)
				slices.Sort(cpu)
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(cpu[len(cpu)/2].Microseconds())/1000, "p50-cpu-ms")
			})
		}
	}
}

// wideGrants returns eight grants of 1,024 ports each.
func wideGrants(client int) []Grant {
	gs := make([]Grant, 8)
	for i := range gs {
		low := uint16(10000 + 1024*i)
		gs[i] = Grant{Client: fmt.Sprint("c", client), Service: fmt.Sprint("wide", i),
			Source: netip.AddrFrom4([4]byte{10, byte(client >> 16), byte(client >> 8), byte(client)}),
			Ports:  []service.Ports{{Proto: service.TCP, Low: low, High: low + 1023}}, Until: time.Now().Add(time.Minute)}
	}
	return gs
}

// threadTime returns the time that the processor has spent on this thread.
func threadTime(b *testing.B) time.Duration {
	var u unix.Rusage
	lab.Must(b, unix.Getrusage(unix.RUSAGE_THREAD, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
