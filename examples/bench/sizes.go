package main

import "time"

// sizes is how much is measured.
type sizes struct {
	devices  int             // of Sallyport, that knocks alternate between: each has a limited number of live nonces
	opens    int             // knocks of each program on a quiet host
	connects int             // at each delay
	delays   []time.Duration // each way
	rates    []int           // packets per second of noise; 0: as fast as this machine can
	knocks   int             // at each limited rate, of Sallyport
	most     int             // at full speed, of Sallyport
	peer     int             // at each rate, of the others
	clients  []int           // whose knocks cost how much
	cost     int             // knocks with each number of clients, of Sallyport
	peerCost int             // and of fwknop
	crowd    int             // clients that get grants
	sustain  time.Duration   // grants
	idle     time.Duration
	library  string // -benchtime of the library's benchmarks
}

var (
	full = sizes{
		devices: 16, opens: 50, connects: 10, delays: []time.Duration{10 * ms, 50 * ms, 150 * ms},
		rates: []int{1_000, 10_000, 50_000, 0}, knocks: 100, most: 1000, peer: 20,
		clients: []int{1, 1_000, 10_000, 100_000}, cost: 100, peerCost: 5,
		crowd: 1000, sustain: 10 * time.Second, idle: 10 * time.Second, library: "1s",
	}
	small = sizes{
		devices: 4, opens: 5, connects: 2, delays: []time.Duration{10 * ms, 50 * ms},
		rates: []int{1_000, 10_000, 0}, knocks: 10, most: 50, peer: 3,
		clients: []int{1, 1_000}, cost: 10, peerCost: 2,
		crowd: 100, sustain: 2 * time.Second, idle: 2 * time.Second, library: "100ms",
	}
)

const ms = time.Millisecond
