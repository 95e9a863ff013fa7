package control

import (
	"net/netip"
	"time"
)

// Status is what a server reports about itself. Times are the server's.
type Status struct {
	Name       string    `json:"name"`
	Address    string    `json:"address"`
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	Now        time.Time `json:"now"`
	Version    string    `json:"version"`        // of the program
	Protocol   int       `json:"protocol"`       // version of the packets
	Loaded     Loaded    `json:"loaded"`         // the files in force
	Interfaces []string  `json:"interfaces"`     // that are captured on, those of All as they are now
	All        bool      `json:"all_interfaces"` // all except the loopback, including later ones
	KnockPorts []string  `json:"knock_ports"`
	Bound      bool      `json:"bound"`  // the server binds them, in place of capturing their packets
	Guards     []string  `json:"guards"` // "ssh=tcp/22"
	Receipts   bool      `json:"receipts"`
	Window     string    `json:"window"` // how far a client's clock may be off

	Firewall Firewall `json:"firewall"`
	Gate     Gate     `json:"gate"`

	Clients   int               `json:"clients"` // that are known, including revoked ones
	Grants    int               `json:"grants"`  // live
	LastGrant *Grant            `json:"last_grant,omitempty"`
	Decided   map[string]uint64 `json:"decided"` // packets since the start, by verdict, and by reason if refused
	Capture   Capture           `json:"capture"`
	Floor     *Floor            `json:"floor,omitempty"`
	Journal   Journal           `json:"journal"`
	Audit     Audit             `json:"audit"`
	LeftOut   []LeftOut         `json:"left_out"` // client files that are ignored: these clients cannot knock

	Seen     []Seen     `json:"seen"`      // clients that knocked since the start, the latest first
	MoreSeen int        `json:"more_seen"` // how many were left out of Seen
	Rights   Privileges `json:"privileges"`
	Watchers int        `json:"watchers"`

	Processes []Process `json:"processes"` // that belong to the server

	Actions *Actions `json:"actions,omitempty"` // nil: no service runs a program

	Recovery []Recovery `json:"recovery,omitempty"`

	Fleet *Fleet `json:"fleet,omitempty"` // nil: the gateway is in none
}

// Fleet is what a gateway has as part of a fleet.
type Fleet struct {
	ID           string   `json:"id"`
	Gateway      string   `json:"gateway"` // what the fleet calls this gateway
	File         string   `json:"file"`    // in which bundles are offered
	LocalClients bool     `json:"local_clients"`
	MaxAge       float64  `json:"max_age"`  // in seconds
	Shadowed     []string `json:"shadowed"` // clients whose files do not count

	// Of the bundle in force.
	Serial   int64     `json:"serial"` // 0: there is none, so no client of the fleet can knock
	Issued   time.Time `json:"issued,omitzero"`
	Since    time.Time `json:"since,omitzero"` // in force
	Age      float64   `json:"age"`            // in seconds
	Old      bool      `json:"old"`            // older than max_age
	Clients  int       `json:"clients"`
	ServerID string    `json:"server_id,omitzero"` // for which these clients make their packets
	Unkept   string    `json:"unkept,omitzero"`    // why it is not kept for the next start

	Unwatched   bool              `json:"unwatched"` // the directory of the file could not be opened
	Refused     map[string]uint64 `json:"refused"`   // offered files since the start, by reason
	LastRefused *RefusedBundle    `json:"last_refused,omitempty"`

	Shared *Shared `json:"shared,omitempty"` // nil: the gateway shares no address
}

// Shared is what a gateway knows as one of those that share an address.
type Shared struct {
	Site      string            `json:"site"`
	Socket    string            `json:"socket"`    // on which its agent connects
	Connected bool              `json:"connected"` // the agent is
	Joined    bool              `json:"joined"`    // the store answers: clients of the fleet can knock
	Taken     bool              `json:"taken"`     // another process has this gateway's name in the store
	Local     bool              `json:"local"`     // without the store it decides alone
	Members   []string          `json:"members"`   // gateways that take part, with this one
	Waiting   int               `json:"waiting"`   // packets that wait for the store
	Counts    map[string]uint64 `json:"counts"`    // since the start
}

// RefusedBundle is a file that was offered and refused.
type RefusedBundle struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // in a word
	Why    string    `json:"why"`
}

// Recovery is a client with a recovery key.
type Recovery struct {
	Client string    `json:"client"`
	Left   int       `json:"left"`           // uses
	Uses   int       `json:"uses"`           // that the key has
	Last   time.Time `json:"last,omitzero"`  // use
	Lost   string    `json:"lost,omitempty"` // why no use is possible: its count is lost
}

// Actions reports the programs of services: results, and those that wait.
type Actions struct {
	PID     int    `json:"pid"`              // of the process that starts them
	Trouble string `json:"trouble,omitzero"` // why none can be started
	Unsaved string `json:"unsaved,omitzero"` // why the server could not record what was started
	Running int    `json:"running"`
	Waiting int    `json:"waiting"` // to be started
	Failed  int    `json:"failed"`  // programs of ends that could not be started: they will be at the next start

	Unfit  []Unfit  `json:"unfit"` // services that are refused, because their programs cannot be started
	Counts []Action `json:"counts"`
}

// Unfit is a service whose programs cannot be started.
type Unfit struct {
	Service string `json:"service"`
	Why     string `json:"why"`
}

// Action counts programs of a service since the start.
type Action struct {
	Service string `json:"service"`
	Hook    string `json:"hook"` // "run" or "run_after"
	What    string `json:"what"` // "started", "failed", "ended", "killed", "timed out" or "lost"
	Count   uint64 `json:"count"`
}

// Loaded identifies the files in force, to compare them with those on disk.
type Loaded struct {
	Settings string   `json:"settings"` // SHA-256 of server.toml, in hex
	Gates    []string `json:"gates"`    // fingerprints of the keys in gate.key, the current one first
}

// Firewall describes what keeps the ports shut.
type Firewall struct {
	Backend  string `json:"backend"`  // "nftables"
	Mode     string `json:"mode"`     // "guard", or "admit": another table shuts the ports
	Sentence string `json:"sentence"` // what guards, and what this kernel lacks
	Persists bool   `json:"persists"` // the guard outlives another tool's flush while no server runs
	Missing  bool   `json:"missing"`  // the guard is not in place, and guarded ports may be open
	Unkept   bool   `json:"unkept"`   // the keeper has ended

	Trial   time.Time `json:"trial,omitzero"`     // when the guard is reverted, unless someone connects through a knock
	TrialBy string    `json:"trial_by,omitempty"` // the client that must; empty: any
}

// Gate is the key that all clients share.
type Gate struct {
	Previous bool      `json:"previous"`       // the previous key still works
	Until    time.Time `json:"until,omitzero"` // until when it works

	Kernel string   `json:"kernel"`        // where its tags are checked first: "xdp", "socket" or "none"
	XDP    []string `json:"xdp,omitempty"` // "eth0 (native)"
	Why    []string `json:"why,omitempty"` // why not where capture.gate says
}

// Capture counts packets before any decision.
type Capture struct {
	Received       uint64 `json:"received"`
	Passed         uint64 `json:"passed"`
	Framed         uint64 `json:"framed,omitzero"` // of these, from browsers
	WrongInterface uint64 `json:"wrong_interface"`
	NotForUs       uint64 `json:"not_for_us"`
	OwnSource      uint64 `json:"own_source"`
	BadSource      uint64 `json:"bad_source"`
	Fragment       uint64 `json:"fragment"`
	Options        uint64 `json:"options"`
	Extension      uint64 `json:"extension"`
	Malformed      uint64 `json:"malformed"`
	Unframed       uint64 `json:"unframed,omitzero"` // as long as what a browser sends, and not that
	KernelDrops    uint64 `json:"kernel_drops"`      // dropped because they arrived faster than they were read

	Gate GateDrops `json:"gate"`
}

// GateDrops counts packets to the knock ports that the kernel dropped, by reason. Those with a wrong tag and copies are
// in Received and in Status.Decided too.
type GateDrops struct {
	Length    uint64 `json:"length"`
	Cut       uint64 `json:"cut"`
	Tag       uint64 `json:"tag"`
	Spent     uint64 `json:"spent"`
	Elsewhere uint64 `json:"spent_elsewhere"`
	XDP       uint64 `json:"xdp"` // how many of all of these on an interface
}

// Floor is the floor that a reboot or a lost journal leaves: knocks stamped at or before it are refused.
type Floor struct {
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// Journal is the size of the replay journal.
type Journal struct {
	Live    int    `json:"live"`    // packets remembered
	Records int    `json:"records"` // slots in use
	Room    int    `json:"room"`    // slots
	Damaged string `json:"damaged,omitzero"`
}

// Audit is the state of the audit log.
type Audit struct {
	File    string    `json:"file,omitzero"`     // "journal": systemd's; empty: no lines are recorded
	Moved   string    `json:"moved,omitzero"`    // why it continues in a file that was moved away
	Mend    string    `json:"mend,omitzero"`     // the command that fixes that
	Lost    uint64    `json:"lost"`              // lines that could not be written since the start
	LostAt  time.Time `json:"lost_at,omitzero"`  // the last of them
	LostWhy string    `json:"lost_why,omitzero"` // why
}

// LeftOut is a client file that is ignored.
type LeftOut struct {
	Client string `json:"client"` // or the file name, if it is no client's
	Why    string `json:"why"`
}

// Seen is what is known of a client that knocked since the start.
type Seen struct {
	Client  string     `json:"client"`
	Last    time.Time  `json:"last,omitzero"` // the last knock that was authentic and fresh
	From    netip.Addr `json:"from,omitzero"`
	Ahead   float64    `json:"ahead"`             // its clock minus ours at that knock, seconds
	OldKey  bool       `json:"old_key,omitzero"`  // it was made with the key before the last rotation
	OldGate bool       `json:"old_gate,omitzero"` // it was made with the old gate key
	Stale   *Stale     `json:"stale,omitempty"`   // refused since then
}

// Stale counts packets that were made with a client's key but were too old, or from the future: its clock is off, or
// someone sends copies.
type Stale struct {
	Packets int        `json:"packets"`
	Last    time.Time  `json:"last"`
	From    netip.Addr `json:"from"`
	Ahead   float64    `json:"ahead"` // of the last, in seconds; below zero: behind
}

// Process is a running process of the server other than the daemon.
type Process struct {
	Name   string     `json:"name"`
	PID    int        `json:"pid"`
	Rights Privileges `json:"privileges"`
}

// Privileges are the remaining privileges of a process.
type Privileges struct {
	User         string   `json:"user"`
	UID          int      `json:"uid"`
	GID          int      `json:"gid"`
	Capabilities string   `json:"capabilities"` // "CAP_NET_ADMIN"; empty: none
	Bounding     string   `json:"bounding"`     // available to programs that it executes
	NoNewPrivs   bool     `json:"no_new_privs"`
	Landlock     int      `json:"landlock"`        // Landlock version that restricts files; 0: unrestricted
	Calls        int      `json:"system_calls"`    // number of allowed ones; 0: all
	Notes        []string `json:"notes,omitempty"` // privileges that could not be dropped, and why
}

// Grant is an open service: for whom, from where, until when.
type Grant struct {
	Client  string       `json:"client"` // whose it is
	Service string       `json:"service"`
	Source  netip.Addr   `json:"source"` // of a network, its first address
	Network netip.Prefix `json:"network,omitzero"`
	Ports   []string     `json:"ports"`
	Until   time.Time    `json:"until"`
	Since   time.Time    `json:"since,omitzero"` // of a last grant only
	Once    bool         `json:"once,omitzero"`  // only the first connection to a port gets in
	Taken   bool         `json:"taken,omitzero"` // with Once: that connection has come, or may have
}

// Revoked is what a revocation ended.
type Revoked struct {
	Ended    []Grant `json:"ended"`
	Sessions int     `json:"sessions"` // that were ended

	Key   string    `json:"key,omitzero"`   // of a client: "good", "revoked", "expired", or "none" if it has no file
	Fleet bool      `json:"fleet,omitzero"` // the client is of the fleet: its office revokes it
	Since time.Time `json:"since,omitzero"` // a client's sessions from before are known only by address

	Site        string `json:"site,omitzero"`        // the gateways of this site ended the same
	Unconfirmed bool   `json:"unconfirmed,omitzero"` // or they may have it still
}

// Reloaded is what a reload changed.
type Reloaded struct {
	Settings []string `json:"settings"` // keys of server.toml, and gate.key
	Added    []string `json:"added"`    // clients
	Changed  []string `json:"changed"`
	Removed  []string `json:"removed"`
	Ended    []Grant  `json:"ended"` // grants that are no longer allowed
}

// Decision is the result of one or more packets, or of a grant.
type Decision struct {
	Time     time.Time      `json:"time"`
	Verdict  string         `json:"verdict"` // as in the audit log; of a grant "ended" or "revoked"
	Client   string         `json:"client,omitzero"`
	From     netip.AddrPort `json:"from,omitzero"`    // of a packet
	Source   netip.Addr     `json:"source,omitzero"`  // of a grant
	Network  netip.Prefix   `json:"network,omitzero"` // of a grant, if that is for more than Source
	LetIn    netip.Prefix   `json:"let_in,omitzero"`  // the network or address that a packet names
	Command  string         `json:"command,omitzero"`
	Services []string       `json:"services,omitempty"`
	Until    []time.Time    `json:"until,omitempty"` // of each service that was granted
	Reason   string         `json:"reason,omitzero"`
	Ahead    float64        `json:"ahead,omitzero"`    // of a stale packet: the client's clock less ours, in seconds
	Copied   bool           `json:"copied,omitzero"`   // it came from an address that cannot be its client's
	OldKey   bool           `json:"old_key,omitzero"`  // made with the key before the last rotation
	OldGate  bool           `json:"old_gate,omitzero"` // made with the old gate key
	Packets  uint64         `json:"packets,omitzero"`  // how many the line stands for, if more than one
}
