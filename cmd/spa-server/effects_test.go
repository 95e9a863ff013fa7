package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// effects names, for each key of a file, a test that fails if the key has no effect. A key follows the type that it is
// decoded into, or the file if that has no name; a test of another package follows that package's directory.
var effects = map[string]string{
	// server.toml
	"raw.version":                    "spa/config.TestLoadRefusesIdentity",
	"raw.name":                       "TestToken",
	"raw.address":                    "TestToken",
	"raw.server_id":                  "TestServerID",
	"raw.knock_ports":                "TestKnockPorts",
	"raw.knock_ports[].port":         "TestSharedKnockPort",
	"raw.knock_ports[].shared":       "TestSharedKnockPort",
	"raw.window":                     "TestWindow",
	"raw.receipts":                   "TestReceiptsOff",
	"raw.state":                      "TestState",
	"state.go.state":                 "spa/config.TestStateDir",
	"raw.zone":                       "TestZone",
	"raw.capture":                    "TestCaptureInterfaces",
	"raw.firewall":                   "TestClosed",
	"raw.audit":                      "TestAuditFile",
	"raw.metrics":                    "TestMetrics",
	"raw.limits":                     "TestLimits",
	"raw.fleet":                      "TestFleet",
	"raw.service":                    "TestJourney",
	"rawCapture.mode":                "TestBound",
	"rawCapture.interfaces":          "TestCaptureInterfaces",
	"rawCapture.browser":             "TestBrowserKnock",
	"rawCapture.gate":                "TestGate",
	"rawFirewall.backend":            "TestDryRun",
	"rawFirewall.mode":               "TestAdmit",
	"rawFirewall.closed":             "TestClosed",
	"rawFirewall.persist":            "TestPersist",
	"rawFirewall.trusted_interfaces": "TestTrustedInterfaces",
	"rawFirewall.tproxy":             "TestTPROXY",
	"rawFirewall.mark":               "TestMark",
	"rawFirewall.admit":              "TestAdmit",
	"rawAdmit.table":                 "TestAdmit",
	"rawAdmit.set4":                  "TestAdmit",
	"rawAdmit.set6":                  "TestAdmit",
	"rawAudit.file":                  "TestAuditFile",
	"rawMetrics.listen":              "TestMetrics",
	"rawMetrics.clients":             "TestMetricsByClient",
	"rawLimits.live_nonces":          "TestLimits",
	"rawLimits.grants":               "TestLimits",
	"rawLimits.grants_per_hour":      "TestLimits",
	"rawFleet.id":                    "TestFleet",
	"rawFleet.office":                "TestFleet",
	"rawFleet.gateway":               "TestFleetSettings",
	"rawFleet.bundle":                "TestFleetSettings",
	"rawFleet.local_clients":         "TestFleetSettings",
	"rawFleet.max_age":               "TestFleetSettings",
	"rawFleet.share":                 "TestFleetSettings",
	"rawFleet.taken":                 "TestFleetSettings",
	"rawFleet.standalone":            "TestStandalone",
	"rawService.ports":               "TestRanges",
	"rawService.for":                 "TestTerms",
	"rawService.max_for":             "TestTerms",
	"rawService.addresses":           "TestAddresses",
	"rawService.on_expiry":           "TestOnExpiry",
	"rawService.once":                "TestOnce",
	"rawService.forward":             "TestForward",
	"rawService.masquerade":          "TestForward",
	"rawService.when":                "TestHours",
	"rawService.run":                 "TestActions",
	"rawService.run_after":           "TestActions",
	"rawService.timeout":             "TestActionTimeout",
	"rawService.user":                "spa/action.TestEnvironment",

	// clients/NAME.toml
	"rawClient.version":        "keys/strict.TestDecodeRefuses",
	"rawClient.id":             "TestJourney",
	"rawClient.key":            "TestJourney",
	"rawClient.allow":          "TestRawPorts",
	"rawClient.from":           "TestFromAndDeny",
	"rawClient.deny":           "TestFromAndDeny",
	"rawClient.widest4":        "TestLetIn",
	"rawClient.widest6":        "TestLetIn",
	"rawClient.delegate":       "TestLetIn",
	"rawClient.expires":        "TestRefusedWithReason",
	"rawClient.max_for":        "TestTerms",
	"rawClient.require_source": "TestRefusedWithReason",
	"rawClient.when":           "TestHours",
	"rawClient.previous":       "TestRotate",
	"rawClient.revoked":        "TestRefusedInSilence",
	"rawClient.recovery":       "TestRecovery",
	"rawPrevious.id":           "TestRotate",
	"rawPrevious.key":          "TestRotate",
	"rawPrevious.until":        "TestRotate",

	// gate.key
	"rawGate.version":       "keys/strict.TestDecodeRefuses",
	"rawGate.key":           "TestJourney",
	"rawGate.previous":      "TestRotateGate",
	"rawPreviousGate.key":   "TestRotateGate",
	"rawPreviousGate.until": "TestRotateGate",

	// hosts/NAME.toml of spa-client
	"rawProfile.version":     "TestProfile",
	"rawProfile.name":        "TestProfile",
	"rawProfile.address":     "TestJourney",
	"rawProfile.knock_ports": "TestProfile",
	"rawProfile.server_id":   "TestProfile",
	"rawProfile.gate_key":    "TestProfile",
	"rawProfile.client":      "TestProfile",
	"rawProfile.id":          "TestProfile",
	"rawProfile.key":         "TestProfile",
	"rawProfile.receipts":    "TestProfile",
	"rawProfile.source":      "TestProfile",
	"rawProfile.recovery":    "TestRecovery",
	"rawProfile.services":    "TestProfile",
	"rawProfile.locked":      "keys.TestLock",
	"rawLock.keyring":        "keys.TestLockBinds",
	"rawLock.memory":         "keys.TestLockBinds",
	"rawLock.passes":         "keys.TestLockBinds",
	"rawLock.lanes":          "keys.TestLockBinds",
	"rawLock.salt":           "keys.TestLockBinds",
	"rawLock.sealed":         "keys.TestLockBinds",

	"rawAdmin.recipient":      "cmd/spa-fleet.TestScripts",
	"rawAdmin.version":        "keys/strict.TestDecodeRefuses",
	"rawConfig.ca":            "spa/fleet/agent.TestWeb",
	"rawConfig.cert":          "spa/fleet/etcd.TestAgent",
	"rawConfig.every":         "spa/fleet/agent.TestWeb",
	"rawConfig.fleet":         "spa/fleet/etcd.TestAgent",
	"rawConfig.from":          "spa/fleet/agent.TestWeb",
	"rawConfig.gateway":       "spa/fleet/agent.TestWeb",
	"rawConfig.key":           "spa/fleet/etcd.TestAgent",
	"rawConfig.share":         "spa/fleet/etcd.TestShare",
	"rawConfig.taken":         "spa/fleet/etcd.TestReporter",
	"rawConfig.to":            "spa/fleet/agent.TestWeb",
	"rawConfig.version":       "keys/strict.TestDecodeRefuses",
	"rawFleetBefore.key":      "cmd/spa-fleet.TestScripts",
	"rawFleetBefore.until":    "cmd/spa-fleet.TestScripts",
	"rawFleetKey.client":      "spa/fleet/office.TestSwappedKeys",
	"rawFleetKey.key":         "cmd/spa-fleet.TestScripts",
	"rawFleetKey.previous":    "cmd/spa-fleet.TestScripts",
	"rawFleetKey.version":     "keys/strict.TestDecodeRefuses",
	"rawGateway.address":      "cmd/spa-fleet.TestScripts",
	"rawGateway.recipient":    "cmd/spa-fleet.TestScripts",
	"rawGateway.retired":      "cmd/spa-fleet.TestScripts",
	"rawGateway.site":         "cmd/spa-fleet.TestScripts",
	"rawGateway.site_address": "cmd/spa-fleet.TestScripts",
	"rawGateway.version":      "keys/strict.TestDecodeRefuses",
	"rawOffice.domain":        "cmd/spa-fleet.TestScripts",
	"rawOffice.fleet":         "cmd/spa-fleet.TestScripts",
	"rawOffice.key":           "cmd/spa-fleet.TestScripts",
	"rawOffice.knock_ports":   "cmd/spa-fleet.TestScripts",
	"rawOffice.name":          "cmd/spa-fleet.TestScripts",
	"rawOffice.receipts":      "spa/fleet/office.TestReceipts",
	"rawOffice.services":      "cmd/spa-fleet.TestScripts",
	"rawOffice.version":       "keys/strict.TestDecodeRefuses",
	"rawProfile.domain":       "cmd/spa-client.TestFleetLaw",
	"rawProfile.fleet_id":     "cmd/spa-client.TestFleetLaw",
	"rawProfile.gateways":     "cmd/spa-client.TestFleetLaw",
	"rawPublished.by":         "cmd/spa-fleet.TestScripts",
	"rawPublished.clients":    "cmd/spa-fleet.TestScripts",
	"rawPublished.gateways":   "cmd/spa-fleet.TestScripts",
	"rawPublished.serial":     "spa/fleet/office.TestTwoPublishers",
	"rawPublished.taken":      "cmd/spa-fleet.TestScripts",
	"rawPublished.time":       "spa/fleet/office.TestTwoPublishers",
	"rawPublished.to":         "cmd/spa-fleet.TestScripts",
	"rawPublished.unfinished": "spa/fleet/office.TestFailedPublishes",
	"rawPublished.version":    "keys/strict.TestDecodeRefuses",
	"rawTerms.allow":          "keys.TestTerms",
	"rawTerms.delegate":       "keys.TestTerms",
	"rawTerms.deny":           "keys.TestTerms",
	"rawTerms.expires":        "keys.TestTerms",
	"rawTerms.from":           "keys.TestTerms",
	"rawTerms.gateways":       "cmd/spa-fleet.TestScripts",
	"rawTerms.max_for":        "keys.TestTerms",
	"rawTerms.require_source": "keys.TestTerms",
	"rawTerms.revoked":        "spa/fleet/office.TestRevokedStays",
	"rawTerms.version":        "keys/strict.TestDecodeRefuses",
	"rawTerms.when":           "keys.TestTerms",
	"rawTerms.widest4":        "keys.TestTerms",
	"rawTerms.widest6":        "keys.TestTerms",
	"Begun.serial":            "spa/fleet/office.TestFailedPublishes",
	"Begun.time":              "spa/fleet/office.TestFailedPublishes",
	"rawVault.admins":         "cmd/spa-fleet.TestScripts",
	"rawVault.earlier":        "spa/fleet/office.TestSealedEarlier",
	"rawVault.fleet":          "spa/fleet/office.TestVaultOfAnother",
	"rawVault.gate":           "cmd/spa-fleet.TestScripts",
	"rawVault.identity":       "cmd/spa-fleet.TestScripts",
	"rawVault.replaced":       "spa/fleet/office.TestSerialOfReplacedKey",
	"rawVault.share":          "spa/fleet/office.TestShareStays",
	"rawVault.signing":        "cmd/spa-fleet.TestScripts",
	"rawVault.version":        "keys/strict.TestDecodeRefuses",
}

// TestEveryKeyHasItsTest: no file may have a key that does nothing. It reads the structs that files are decoded into,
// wherever they are.
func TestEveryKeyHasItsTest(t *testing.T) {
	keys, tests := fileKeys(t), declaredTests(t)
	keys["raw.knock_ports[].port"], keys["raw.knock_ports[].shared"] = true, true // tables in a list of mixed types
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		test, ok := effects[key]
		if !strings.Contains(test, ".") {
			test = "cmd/spa-server." + test
		}
		switch {
		case !ok:
			t.Errorf("no test is named that shows the effect of %s", key)
		case !tests[test]:
			t.Errorf("%s names %s, which is not there", key, test)
		}
	}
	for key := range effects {
		if !keys[key] {
			t.Errorf("%s is no key of a file", key)
		}
	}
	if len(keys) < 60 {
		t.Errorf("there are %d keys: were they found?", len(keys))
	}
}

// eachSource calls visit with each Go file of the module.
func eachSource(t *testing.T, visit func(path string, source []byte)) {
	t.Helper()
	lab.Must(t, filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err == nil {
			visit(path, source)
		}
		return err
	}))
}

// declaredTests returns the tests and fuzz targets of the module, each by its name alone and prefixed by its package's
// directory: TestJourney, cmd/spa-server.TestJourney.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	there := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	eachSource(t, func(path string, source []byte) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, match := range declared.FindAllSubmatch(source, -1) {
			there[string(match[1])] = true
			there[strings.TrimPrefix(filepath.Dir(path), "../../")+"."+string(match[1])] = true
		}
	})
	return there
}

// fileKeys returns the keys in the toml tags of the module.
func fileKeys(t *testing.T) map[string]bool {
	t.Helper()
	keys := make(map[string]bool)
	eachSource(t, func(path string, source []byte) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		file := lab.Value(parser.ParseFile(token.NewFileSet(), path, source, 0))(t)
		owner := map[*ast.StructType]string{}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					owner[s] = n.Name.Name
				}
			case *ast.StructType:
				name, ok := owner[n]
				if !ok {
					name = filepath.Base(path)
				}
				for _, tag := range tomlTags(n) {
					keys[name+"."+tag] = true
				}
			}
			return true
		})
	})
	return keys
}

func tomlTags(s *ast.StructType) []string {
	var tags []string
	for _, field := range s.Fields.List {
		if field.Tag == nil {
			continue
		}
		if tag := reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("toml"); tag != "" {
			tags = append(tags, tag)
		}
	}
	return tags
}
