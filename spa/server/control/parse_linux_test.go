package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestCrowdedAnswer: a short line cannot become a great value in the client's memory.
func TestCrowdedAnswer(t *testing.T) {
	many := func(begin, value, end string) string {
		return begin + strings.Repeat(value+",", 10<<20/len(value)) + value + end + "\n"
	}
	for name, test := range map[string]struct {
		answer  string
		command Command
	}{
		"processes":           {many(`{"status":{"processes":[`, "{}", "]}}"), CommandStatus},
		"nothing":             {many(`{"status":{"seen":[`, "null", "]}}"), CommandStatus},
		"values of no use":    {many(`{"status":{"left_out":[`, "0", "]}}"), CommandStatus},
		"texts":               {many(`{"status":{"processes":[`, `""`, "]}}"), CommandStatus},
		"an act":              {many(`{"reloaded":{"ended":[`, "{}", "]}}"), CommandRecord},
		"grants that ended":   {many(`{"reloaded":{"ended":[`, "{}", "]}}"), CommandReload},
		"behind escaped text": {many(`{"hint":"\\\\\"","status":{"seen":[`, "{}", "]}}"), CommandStatus},
	} {
		t.Run(name, func(t *testing.T) {
			err := asked(t, playing(t, []byte(test.answer), false), test.command, func(Reply) error {
				t.Error("it is handed on")
				return nil
			})
			if !errors.Is(err, errEndless) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestGreatAnswer: what an honest server may have to say is not too much.
func TestGreatAnswer(t *testing.T) {
	var reload, status Reply
	reload.Reloaded = &Reloaded{Ended: make([]Grant, 1<<17)}
	for i := range reload.Reloaded.Ended {
		reload.Reloaded.Ended[i].Ports = []string{"tcp/22"}
	}
	for i := range 1_000_000 {
		reload.Reloaded.Added = append(reload.Reloaded.Added, fmt.Sprint("client", i))
	}
	status.Status = &Status{Seen: make([]Seen, 2000), LeftOut: make([]LeftOut, 2000)}
	for i := range status.Status.LeftOut {
		status.Status.LeftOut[i].Why = strings.Repeat(`"a, b\", `, 100)
	}
	for command, reply := range map[Command]Reply{CommandReload: reload, CommandStatus: status} {
		line := append(lab.Value(json.Marshal(reply))(t), "\n{\"done\":true}\n"...)
		got := 0
		lab.Must(t, asked(t, playing(t, line, false), command, func(Reply) error { got++; return nil }))
		if got != 1 {
			t.Errorf("%s: got %d replies", command, got)
		}
	}
}

// TestMostValues: only answers that may name every client have room for a million values.
func TestMostValues(t *testing.T) {
	line := []byte(`{"nothing":[0` + strings.Repeat(",0", fewValues+1) + `]}`)
	for command, room := range map[Command]bool{CommandReload: true, CommandRevoke: true, CommandStatus: false,
		CommandRecord: false, CommandWatch: false} {
		if _, err := parse(line, mostValues(command)); (err == nil) != room {
			t.Errorf("%s: got %v, want room: %v", command, err, room)
		}
	}
}
