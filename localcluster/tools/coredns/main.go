// Command coredns is CoreDNS with only the plugins a local cluster needs.
//
// The stock main also compiles the plugins of every cloud (minutes, hundreds of
// packages); this one builds in seconds. The order in Directives is the order in
// which plugins see a query.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	dnsserver.Directives = []string{
		"bind", "health", "ready", "errors", "cache", "kubernetes", "loop", "forward",
	}
	coremain.Run()
}
