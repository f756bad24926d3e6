//! A minimal web server, for cases that don't need a real one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
};

/// The server's response.
pub struct Reply {
    pub status: &'static str,
    /// Header lines, each with its line ending.
    pub headers: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: &'static str, headers: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: headers.to_owned(),
            body: body.into(),
        }
    }
}

/// Answers every request with `answer`, which gets the request's head (`GET /path HTTP/1.1` and
/// header lines). Returns the server's URL.
pub fn serve(answer: impl Fn(&str) -> Reply + Send + 'static) -> String {
    serve_at("127.0.0.1:0", answer)
}

/// Like the above, but at a given address.
pub fn serve_at(address: &str, answer: impl Fn(&str) -> Reply + Send + 'static) -> String {
    let listener = TcpListener::bind(address).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n")
                && lines.read_line(&mut head).is_ok_and(|length| length > 0)
            {}
            // A connection that closes with unread bytes could lose its response.
            let length = header(&head, "content-length").and_then(|length| length.parse().ok());
            let mut body = lines.by_ref().take(length.unwrap_or(0));
            let _ = std::io::copy(&mut body, &mut std::io::sink());
            let Reply {
                status,
                headers,
                body,
            } = answer(&head);
            let length = body.len();
            // The client may have disconnected.
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\
                 Connection: close\r\n\r\n"
            )
            .and_then(|()| stream.write_all(&body));
        }
    });
    url
}

/// Returns a header's value from a request's head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
