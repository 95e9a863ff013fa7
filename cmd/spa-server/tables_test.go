package main

import (
	"github.com/google/nftables"

	"sallyport/spa/lab"
)

// foreignTable makes a table with our name and its own set in it, as another tool might.
func foreignTable() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "spa", Family: nftables.TableFamilyINet})
	if err := conn.AddSet(&nftables.Set{Table: table, Name: "mine", KeyType: nftables.TypeIPAddr}, nil); err != nil {
		return err
	}
	return conn.Flush()
}

// flushRuleset flushes the gateway's rule set, as another tool's reload does.
func (g *gateway) flushRuleset() {
	g.t.Helper()
	lab.Must(g.t, g.host.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	}))
}

// elements returns how many elements a set of our table has.
func (g *gateway) elements(set string) int {
	g.t.Helper()
	n := 0
	lab.Must(g.t, g.host.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		s, err := conn.GetSetByName(&nftables.Table{Name: "spa", Family: nftables.TableFamilyINet}, set)
		if err != nil {
			return err
		}
		elements, err := conn.GetSetElements(s)
		n = len(elements)
		return err
	}))
	return n
}
