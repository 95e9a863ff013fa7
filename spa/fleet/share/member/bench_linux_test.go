package member_test

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
	"sallyport/spa/lab"
)

// BenchmarkSpend measures packets of many clients, through a Unix socket, at a store that takes 50 ms to answer.
func BenchmarkSpend(b *testing.B) {
	here, there := pair(b)
	go answer(share.NewConn(there), 50*time.Millisecond)
	h := &host{agents: make(chan net.Conn, 1)}
	m := member.New(config(h))
	h.agents <- here
	ctx, end := context.WithCancel(b.Context())
	defer end()
	go m.Run(ctx, h.agents)
	for !m.Alive() {
		time.Sleep(time.Millisecond)
	}
	places := make(chan struct{}, member.MaxSpends/2)
	var all sync.WaitGroup
	b.ResetTimer()
	for n := range b.N {
		places <- struct{}{}
		all.Add(1)
		s := &member.Spend{Key: keys.ID(1 + n), Decide: func(member.How, *member.Attempt, []byte) {
			<-places
			all.Done()
		}}
		if !m.Spend(s) {
			b.Fatal("a packet was dropped")
		}
	}
	all.Wait()
	if c := m.Status().Counts; c.Won != uint64(b.N) {
		b.Fatalf("%+v", c)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
}

// answer is an agent whose store lets everyone win, after a while.
func answer(conn *share.Conn, after time.Duration) {
	for {
		m, err := conn.Read()
		if err != nil {
			return
		}
		switch m.Kind {
		case share.AskSession:
			conn.Write(share.Message{Kind: share.InSession, Seq: m.Seq, Revision: 1})
		case share.Read:
			conn.Write(share.Message{Kind: share.Begin, Seq: m.Seq, Revision: 2}, share.Message{Kind: share.End, Seq: m.Seq})
		case share.Spend:
			time.AfterFunc(after, func() { conn.Write(share.Message{Kind: share.Won, Seq: m.Seq}) })
		}
	}
}

// pair returns the two ends of a Unix socket.
func pair(b *testing.B) (here, there net.Conn) {
	fds := lab.Value(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(b)
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		ends[i] = lab.Value(net.FileConn(f))(b)
		f.Close()
		b.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}
