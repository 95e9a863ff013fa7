package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// permitAgent makes a user of etcd, without a password, that may read one gateway's bundle and write its report, and
// nothing else. It is for the agent there: the common name of its certificate is the user's name.
func permitAgent(ctx context.Context, s *Store, user, gateway string) error {
	exactly := ""
	return errors.Join(s.permit(ctx, user, clientv3.PermissionType(clientv3.PermRead), map[string]string{
		s.headKey(gateway):   exactly,
		s.sealedKey(gateway): clientv3.GetPrefixRangeEnd(s.sealedKey(gateway)),
	}), s.permit(ctx, user, clientv3.PermissionType(clientv3.PermReadWrite), map[string]string{
		s.takenKey(gateway): exactly,
	}))
}

// permitMember is permitAgent for a gateway that shares its address with others of a site: it may write what they
// share.
func permitMember(ctx context.Context, s *Store, user, gateway, site string) error {
	share := s.prefix + "share/" + site + "/"
	return errors.Join(permitAgent(ctx, s, user, gateway),
		s.permit(ctx, user, clientv3.PermissionType(clientv3.PermReadWrite),
			map[string]string{share: clientv3.GetPrefixRangeEnd(share)}))
}

// permitOffice makes a user that may write all bundles of the fleet: for administrators.
func permitOffice(ctx context.Context, s *Store, user string) error {
	return s.permit(ctx, user, clientv3.PermissionType(clientv3.PermReadWrite), map[string]string{
		s.prefix: clientv3.GetPrefixRangeEnd(s.prefix)})
}

// permit makes a user and a role of the same name with these ranges of keys. What is there already is kept.
func (s *Store) permit(ctx context.Context, user string, kind clientv3.PermissionType, ranges map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := s.client().RoleAdd(ctx, user); err != nil && !errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
		return fmt.Errorf("etcd: role %s: %w", user, err)
	}
	for from, to := range ranges {
		if _, err := s.client().RoleGrantPermission(ctx, user, from, to, kind); err != nil {
			return fmt.Errorf("etcd: role %s: %w", user, err)
		}
	}
	_, err := s.client().UserAddWithOptions(ctx, user, "", &clientv3.UserAddOptions{NoPassword: true})
	if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
		return fmt.Errorf("etcd: user %s: %w", user, err)
	}
	if _, err := s.client().UserGrantRole(ctx, user, user); err != nil {
		return fmt.Errorf("etcd: user %s: %w", user, err)
	}
	return nil
}
