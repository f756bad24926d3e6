//! Binding TCP addresses.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt::set_socket_reuseaddr,
};

/// Binds a listener whose socket tasks can wait for.
pub(crate) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Finds whether `address` can be bound on this machine. It may be in use: a sidecar with the same
/// config may be running. No connection is accepted.
///
/// # Errors
/// It can't be bound, for another reason.
pub(crate) fn rehearse(address: SocketAddr) -> io::Result<()> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As listeners have it, so that this one is in the way of none that starts at the same time.
    set_socket_reuseaddr(&socket, true)?;
    match bind(&socket, &address).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_machine_is_found_and_one_in_use_is_accepted() {
        let bound = listener(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
        let address = bound.local_addr().expect("address");
        rehearse(address).expect("a sidecar may be running");
        drop(bound);
        rehearse(address).expect("it is free");
        listener(address).expect("it still is");
        // TEST-NET-1 of RFC 5737.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 9464));
        let error = rehearse(elsewhere).expect_err("not this machine's");
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
