// Command agent enforces NetworkPolicies on the pods of the local cluster.
//
// Which packets are allowed decides the controller of kube-network-policies, unchanged: it gets the
// first packet of every connection by NFQUEUE and gives its verdict. Its own nftables rules need a
// kernel with CONFIG_NFT_QUEUE, which not every one has; localcluster therefore sends the packets to
// the queue by iptables (see policies.py), and where the kernel takes the rules of the controller as
// well, a packet is judged twice, to the same end.
package main

import (
	"context"
	"flag"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	klog.InitFlags(nil)
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	node := flag.String("node", "", "the node whose pods the controller's own rules are about")
	queue := flag.Int("queue", 100, "number of the NFQUEUE")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Exit(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		klog.Exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		factory.Networking().V1().NetworkPolicies(),
		factory.Core().V1().Namespaces(),
		factory.Core().V1().Pods(),
		nil, nil, nil, nil,
		// Not with NRIdisabled: v0.8.0 then falls over a packet to an address that is no pod's. Without
		// a runtime that offers NRI the plugin says so once, and is not heard of again.
		networkpolicy.Config{NodeName: *node, QueueID: *queue},
	)
	if err != nil {
		klog.Exit(err)
	}
	factory.Start(ctx.Done())
	if err := controller.Run(ctx); err != nil {
		klog.Exit(err)
	}
}
