// Command provisioner makes the volumes of the local cluster's StorageClass.
//
// It runs on the host, so a volume is one mkdir (no helper pod, no image). All
// nodes share the machine's file system: a volume is a directory that every node
// may mount, in every access mode. The kubelet applies fsGroup to `local` volumes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
)

type provisioner struct{ root string }

func (p *provisioner) directory(volume string) string {
	return filepath.Join(p.root, filepath.Base(volume))
}

// Provision makes the directory and describes it as a `local` volume.
func (p *provisioner) Provision(
	_ context.Context, options controller.ProvisionOptions,
) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC
	if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == v1.PersistentVolumeBlock {
		return nil, controller.ProvisioningFinished, fmt.Errorf("block volumes are not supported")
	}
	path := p.directory(options.PVName)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever the umask
		return nil, controller.ProvisioningFinished, err
	}
	klog.Infof("volume %s for claim %s/%s", options.PVName, claim.Namespace, claim.Name)
	anyNode := v1.NodeSelectorRequirement{
		Key: v1.LabelOSStable, Operator: v1.NodeSelectorOpIn, Values: []string{"linux"},
	}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			Capacity: v1.ResourceList{
				v1.ResourceStorage: claim.Spec.Resources.Requests[v1.ResourceStorage],
			},
			PersistentVolumeSource: v1.PersistentVolumeSource{
				Local: &v1.LocalVolumeSource{Path: path},
			},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{
					{MatchExpressions: []v1.NodeSelectorRequirement{anyNode}},
				},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete removes the volume's directory.
func (p *provisioner) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	return os.RemoveAll(p.directory(volume.Name))
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	root := flag.String("root", "", "folder in which the volumes are made")
	name := flag.String("name", "", "provisioner name, as the StorageClass has it")
	flag.Parse()
	if *root == "" || *name == "" {
		klog.Exit("--root and --name are needed")
	}
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
	controller.NewProvisionController(
		klog.FromContext(ctx), client, *name, &provisioner{root: *root},
		controller.LeaderElection(false),
	).Run(ctx)
}
