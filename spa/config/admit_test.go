package config

import (
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

const admitting = "[firewall]\nmode = 'admit'\n[firewall.admit]\n"

// TestAdmit reads settings for the administrator's own table, and checks the messages about them.
func TestAdmit(t *testing.T) {
	for add, want := range map[string]Admit{
		"table = 'inet filter'\nset4 = 'spa4'\nset6 = 'spa6'": {"inet", "filter", "spa4", "spa6"},
		"table = 'ip _my.table-1'\nset4 = 'S'":                {"ip", "_my.table-1", "S", ""},
		"table = 'ip6 filter'\nset6 = 'spa6'":                 {"ip6", "filter", "", "spa6"},
	} {
		c, err := loadText(t, least+admitting+add)
		if err != nil {
			t.Errorf("%s: %v", add, err)
			continue
		}
		if got := c.Firewall.Admit; got != want {
			t.Errorf("%s: got %+v, want %+v", add, got, want)
		}
	}
}

func TestAdmitRefuses(t *testing.T) {
	const table, sets = "table = 'inet filter'\n", "set4 = 'spa4'\n"
	const admit, iptables = "[firewall]\nmode='admit'\n", "[firewall]\nbackend='iptables'\n"
	const own = "[firewall.admit]\n" + table + sets
	for text, want := range map[string]string{
		admitting:                                    `:7: firewall.admit.table: should be the family and the name`,
		admitting + "table = 'filter'\n" + sets:      ":8: firewall.admit.table: should be the family",
		admitting + "table = 'bridge filter'\n":      ":8: firewall.admit.table: should be the family",
		admitting + "table = 'inet 1filter'\n":       ":8: firewall.admit.table: should be the family",
		admitting + "table = 'inet filter '\n":       ":8: firewall.admit.table: should be the family",
		admitting + table:                            ":7: firewall.admit: should name a set of that table",
		admitting + table + "set4 = ''\n":            ":9: firewall.admit.set4: should be the name of a set",
		admitting + table + "set6 = 'a b'\n":         ":9: firewall.admit.set6: should be the name of a set",
		admitting + "table = 'ip f'\nset6 = 's'\n":   ":9: firewall.admit.set6: is for addresses that never reach",
		admitting + "table = 'ip6 f'\nset4 = 's'\n":  ":9: firewall.admit.set4: is for addresses that never reach",
		admitting + table + "set5 = 's'\n":           `:9: firewall.admit.set5: unknown key`,
		"[firewall.admit]\n" + table:                 `:6: firewall.admit.table: has an effect only with firewall.mode`,
		"[firewall.admit]\n" + sets:                  `:6: firewall.admit.set4: has an effect only with`,
		admit + "closed='reject'\n" + own:            ":7: firewall.closed: has no effect",
		admit + "persist='file'\n" + own:             ":7: firewall.persist: has no effect",
		admit + "trusted_interfaces=['lan']\n" + own: ":7: firewall.trusted_interfaces: has no effect",
		iptables + "persist='file'\n":                ":7: firewall.persist: \"file\" has an effect only with nftables",
		admitting + table + sets + "[service.a]\nports=['tcp/1']\naddresses=['::1']\n": ":12: service.a.addresses: has no",
		admit + "mark=1\n" + own:             ":7: firewall.mark: has no effect",
		iptables + "closed='reject'\n":       ":7: firewall.closed: \"reject\" works only with nftables",
		admit + "backend='iptables'\n" + own: `:6: firewall.mode: "admit" works with nftables sets`,
	} {
		c, err := loadText(t, least+text)
		if err == nil || c != nil || !strings.Contains(err.Error(), FileName+want) {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestLocation(t *testing.T) {
	c := lab.Value(loadText(t, least+"zone = 'Europe/Berlin'\n"))(t)
	summer := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	if got := summer.In(c.Location()).Hour(); got != 14 {
		t.Errorf("noon UTC in summer is %d o'clock, want 14", got)
	}
	if got := new(Config).Location(); got != time.Local {
		t.Errorf("without a zone got %v, want the machine's own", got)
	}
}
