# make demo    see it work: needs only Go, and root or unprivileged user namespaces
# make test    every test that this machine can run; where CI is set it must be able to run all
# make kernels the demo, the guard and the tests on other kernels and processors (hours): KERNELS="bullseye arm64"
# make dist    archives and packages in dist/, the same bytes each time: DIST="--only linux/amd64" for some
# make bench   how fast each step of a packet's path is: make bench COUNT=10 >new.txt; benchstat old.txt new.txt
# make bench-peers  Sallyport beside fwknop and knockd, which must be installed: examples/bench (root, a quarter of an hour)
# make bench-fleet  how soon 100 gateways refuse a revoked client, by etcd and by a directory: examples/bench (root, etcd)
# make mutate  which changes to the packet's path no test notices (root, hours): MUTATE="-for 30m ./firewall"
GO      ?= go
PREFIX  ?= /usr/local
export CGO_ENABLED = 0

BINARIES = spa-server spa-client spa-keygen spa-fleet
FUZZTIME ?= 10s
BENCH   ?= .
COUNT   ?= 1
MUTATE  ?= spa spa/capture spa/policy spa/replay spa/sandbox spa/server/control spa/server firewall

NEEDED   = $(shell sed -n 's/^go //p' go.mod)

.PHONY: needed-go build test race lint fuzz mutate kernels bench bench-peers bench-fleet demo install dist clean

# An old Go that fetches the newer one is good too.
needed-go:
	@have=$$(GOTOOLCHAIN=local $(GO) version 2>/dev/null | cut -d ' ' -f 3 | sed 's/^go//'); \
	oldest=$$(printf '%s\n' $(NEEDED) "$$have" | sort -V | head -n 1); \
	[ "$$oldest" = $(NEEDED) ] || $(GO) list -m >/dev/null 2>&1 || { \
		echo "Sallyport needs Go $(NEEDED) or later (https://go.dev/dl/), and $(GO) here is $${have:-missing}."; exit 1; } >&2

build: needed-go
	$(GO) build -trimpath -ldflags=-s -o bin/ $(BINARIES:%=./cmd/%)

# The longest tests come first. They mostly wait, so that there is time for one package more.
test: needed-go
	$(GO) vet ./...
	@.ci/test $(GO) test -timeout 60m -p $$(($$(getconf _NPROCESSORS_ONLN) + 1)) ./firewall ./cmd/spa-server ./...

# Long tests in which goroutines share nothing, or other programs run.
ALONE    = IndistinguishableFromRandom|ChiSquareSeesABias|EveryBitCounts|EveryLengthComesUp|FormatDoesNotLeak|EveryCrash|TestCrashes|KilledWriting|TestPageI

race: needed-go
	CGO_ENABLED=1 $(GO) test -race -timeout 30m -skip '$(ALONE)' ./keys/... ./spa/...

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	GOOS=linux $(GO) vet ./...
	GOOS=linux GOARCH=386 $(GO) vet ./spa/... ./keys/... ./firewall/...
	for os in darwin windows freebsd; do GOOS=$$os $(GO) vet ./cmd/spa-client ./cmd/spa-keygen ./cmd/spa-fleet ./cmd/internal/... ./spa/client/... ./spa/fleet/... ./examples/embed ./keys/... ./spa || exit 1; done
	$(GO) tool -modfile=.ci/go.mod staticcheck ./...
	$(GO) mod tidy -diff

fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

mutate:
	$(GO) run -C .ci ./mutate $(MUTATE)

kernels: needed-go
	@examples/kernels/run $(KERNELS)

bench: needed-go
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./keys ./spa/... ./firewall/... ./cmd/spa-server

bench-peers: needed-go
	@$(GO) run -C examples/bench . $(PEERS)

bench-fleet: needed-go
	@$(GO) run -C examples/bench . -fleet $(FLEET)

demo: needed-go
	@$(GO) run ./examples/demo

install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(BINARIES:%=bin/%) $(DESTDIR)$(PREFIX)/bin

dist: needed-go
	$(GO) run -C .ci/dist . $(DIST) $(CURDIR)/dist

clean:
	rm -rf bin dist
