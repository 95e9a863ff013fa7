package check

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/recovery"
	"sallyport/spa/server/control"
)

// checkRecovery reports recovery keys that cannot be used, or soon not.
func checkRecovery(c *config.Config, registry *keys.Registry, now time.Time) []Finding {
	path := filepath.Join(c.State, config.RecoveryFile)
	counts, err := recovery.Read(path)
	known := make(map[keys.ID]recovery.Count)
	for _, count := range counts {
		known[count.ID] = count
	}
	var found []Finding
	for _, client := range registry.Clients() {
		count, ok := known[client.ID]
		if !client.Revoked.IsZero() || !client.Expires.IsZero() && !now.Before(client.Expires) {
			continue
		}
		switch {
		case client.Recovery > 0 && err != nil:
			found = append(found, ofRecovery(client, Problem, "its recovery key is refused: "+err.Error()))
		case client.Recovery > 0 && !ok:
			found = append(found, ofRecovery(client, Problem, fmt.Sprintf("its recovery key is refused: %s has no count of "+
				"its uses, because it was lost, is a copy, or is from before the key", path)))
		case ok && client.Recovery == 0:
			found = append(found, ofRecovery(client, Warning, "it is no longer a recovery client, and its key is limited "+
				"still: "+uses(count.Left(0))))
		case ok && client.Recovery > count.Uses:
			found = append(found, ofRecovery(client, Warning, fmt.Sprintf("recovery = %d gives its key no more uses than "+
				"the %d that it was made with: %s", client.Recovery, count.Uses, uses(count.Left(client.Recovery)))))
		case ok && count.Left(client.Recovery) == 0:
			found = append(found, ofRecovery(client, Warning, "its recovery key has no uses left: the printed page opens "+
				"nothing"))
		case ok && count.Left(client.Recovery) == 1:
			found = append(found, ofRecovery(client, Notice, "its recovery key has one use left"))
		}
	}
	return found
}

// checkRefused reports recovery keys that the running server refuses for a reason that the file alone does not show.
func checkRefused(c *config.Config, clients []control.Recovery) []Finding {
	counts, _ := recovery.Read(filepath.Join(c.State, config.RecoveryFile))
	var found []Finding
	for _, r := range clients {
		client, err := keys.ReadClient(filepath.Join(c.Dir, config.ClientsDir, r.Client+keys.Suffix))
		counted := err == nil && slices.ContainsFunc(counts, func(n recovery.Count) bool { return n.ID == client.ID })
		if r.Lost != "" && counted { // else the file shows it
			found = append(found, ofRecovery(client, Problem, "the server refuses its recovery key: "+r.Lost+", or the file "+
				"with the count is older than the last use, or was replaced while the server runs"))
		}
	}
	return found
}

func uses(left int) string {
	if left == 1 {
		return "1 use is left"
	}
	return fmt.Sprintf("%d uses are left", left)
}

func ofRecovery(c *keys.Client, severity Severity, text string) Finding {
	return Finding{Severity: severity, Subject: filepath.Join(config.ClientsDir, c.Name+keys.Suffix), Text: text,
		Advice: "spa-keygen rotate " + c.Name + "\n# prints a page with a new key and fresh uses"}
}
