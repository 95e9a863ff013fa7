package place

import (
	"strings"
	"testing"
)

func TestAccessList(t *testing.T) {
	const me, other, everyone, all, read, look = "S-1-5-21-1-2-3-1001", "S-1-5-21-1-2-3-1002", "S-1-1-0", 0x1f01ff,
		0x120089, 0x120080
	mine := accessEntry{me, all}
	for name, c := range map[string]struct {
		list accessList
		want string // how the problem begins; "" for none
	}{
		"the user alone": {accessList{owner: me, entries: []accessEntry{mine}}, ""},
		"as a profile directory": {accessList{owner: me,
			entries: []accessEntry{mine, {sidSystem, all}, {sidAdministrators, all}, {sidOwnerRights, all}}}, ""},
		"an administrator's": {accessList{owner: sidAdministrators, entries: []accessEntry{mine}}, ""},
		"nobody":             {accessList{owner: me}, ""},
		"who may see it":     {accessList{owner: me, entries: []accessEntry{mine, {everyone, look}}}, ""},
		"everyone reads": {accessList{owner: me, entries: []accessEntry{mine, {everyone, read}}},
			"S-1-1-0 has access"},
		"another reads":          {accessList{owner: me, entries: []accessEntry{{other, 0x1}}}, other + " has access"},
		"another writes":         {accessList{owner: me, entries: []accessEntry{{other, 0x2}}}, other + " has access"},
		"another appends":        {accessList{owner: me, entries: []accessEntry{{other, 0x4}}}, other + " has access"},
		"another deletes":        {accessList{owner: me, entries: []accessEntry{{other, 0x10000}}}, other + " has access"},
		"another may give it":    {accessList{owner: me, entries: []accessEntry{{other, 0x40000}}}, other + " has access"},
		"another may take it":    {accessList{owner: me, entries: []accessEntry{{other, 0x80000}}}, other + " has access"},
		"another, all":           {accessList{owner: me, entries: []accessEntry{{other, 0x10000000}}}, other + " has access"},
		"another, the most":      {accessList{owner: me, entries: []accessEntry{{other, 0x02000000}}}, other + " has access"},
		"another, generic read":  {accessList{owner: me, entries: []accessEntry{{other, 0x80000000}}}, other + " has access"},
		"another, generic write": {accessList{owner: me, entries: []accessEntry{{other, 0x40000000}}}, other + " has access"},
		"an unknown entry": {accessList{owner: me, entries: []accessEntry{{"", 0xffffffff}}},
			"its access list has an entry"},
		"no list":   {accessList{owner: me, missing: true}, "it has no access list"},
		"another's": {accessList{owner: other, entries: []accessEntry{mine}}, "it belongs to another user"},
	} {
		c.list.reader = me
		if got := c.list.trouble(); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	list := accessList{owner: me, reader: me}
	if got, want := list.mend(`C:\a b\gw.toml`),
		`icacls "C:\a b\gw.toml" /reset && icacls "C:\a b\gw.toml" /inheritance:r /grant *`+me+`:F`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	list.owner = other
	if got := list.mend("gw.toml"); !strings.HasPrefix(got, `takeown /f "gw.toml" && icacls "gw.toml" /reset && `) {
		t.Errorf("another's: got %s", got)
	}
}
