package check

import (
	"os"

	"sallyport/spa/config"
)

// around is what the kernel does where the guard cannot see it.
type around struct {
	cookies int  // net.ipv4.tcp_syncookies: 2 always sends them
	ipvs    bool // virtual servers exist
	fou     bool // the module for tunnels over UDP is loaded
}

func readAround() around {
	var a around
	a.cookies, _ = readNumber("/proc/sys/net/ipv4/tcp_syncookies") // 0 if the kernel has none
	_, ipvs := os.Stat("/proc/thread-self/net/ip_vs")
	_, fou := os.Stat("/sys/module/fou")
	a.ipvs, a.fou = ipvs == nil, fou == nil
	return a
}

// checkAround looks for paths through the kernel to a service that no rule sees.
func checkAround(c *config.Config, h *host) []Finding {
	if c.Firewall.Backend == "dry-run" || len(c.Services) == 0 {
		return nil
	}
	var found []Finding
	if h.around.cookies == 2 {
		found = append(found, Finding{
			Severity: Warning, Subject: "tcp_syncookies",
			Text: "2: a session that was let in can be started again without a SYN for two minutes, even " +
				"after its grant is over",
			Advice: "sysctl -w net.ipv4.tcp_syncookies=1\n# and the same in a file of /etc/sysctl.d",
		})
	}
	if h.around.ipvs {
		found = append(found, Finding{
			Severity: Notice, Subject: "ip_vs",
			Text:   "IPVS is in use: a virtual server that leads to a guarded port of this host passes the guard",
			Advice: "ipvsadm -Ln\n# let none of them lead to a guarded port of this host",
		})
	}
	if h.around.fou {
		found = append(found, Finding{
			Severity: Notice, Subject: "fou",
			Text:   "the kernel may unpack tunnels over UDP (FOU, GUE): what is in them passes the guard",
			Advice: "ip fou show\n# keep none that strangers can send to",
		})
	}
	return found
}
