//! Who may do what: MAAS's two roles, and the permissions that handlers ask for.

/// What an account is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Admin,
    User,
}

/// What a request wants to do. Handlers ask for one of these, never for a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Read machines, networks, events, racks.
    View,
    /// One's own tokens.
    OwnAccount,
    /// Create, change, commission, power and delete machines.
    EditMachines,
    /// A BMC's password.
    ViewPowerSecrets,
    /// Fabrics, VLANs, subnets, ranges.
    EditNetworks,
    /// Enrolment tokens, revocation.
    EditRacks,
    /// Images.
    EditImages,
    /// Accounts other than one's own; settings.
    Administer,
}

/// The role does not include the permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("User is not allowed access to this API.")]
pub struct Denied;

impl Role {
    pub fn may(self, permission: Permission) -> bool {
        match self {
            Role::Admin => true,
            Role::User => matches!(permission, Permission::View | Permission::OwnAccount),
        }
    }

    pub fn require(self, permission: Permission) -> Result<(), Denied> {
        if self.may(permission) {
            Ok(())
        } else {
            Err(Denied)
        }
    }
}
