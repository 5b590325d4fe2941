// One TLS connection on asio: OpenSSL over a BIO of our own, fed from a receive buffer that all streams of a thread
// share.
//
// Push model. When the socket is readable the stream receives into the shared buffer, decrypts straight into the space
// that the handler offers, and says how much came. A partial TLS record is kept per stream, nothing else is, so an idle
// connection costs little. Belongs to the thread of its io_context; handlers are called on it, never from within a call
// of the stream by the handler's own code other than read()/write() documented below. The stream dies with its owner:
// after close() or destruction no handler is called.
#pragma once

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "net/tls_context.h"

namespace tidemark::net {

// Shared by the streams of one thread.
class ReceiveBuffer {
 public:
  // At least 64 KiB are taken: a partial record must leave room for the rest of it.
  explicit ReceiveBuffer(std::size_t size = 256 << 10);
  std::span<std::byte> span() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Who is at the other end, once the handshake is done.
struct Peer {
  std::string address;  // "192.0.2.7:41234"
  std::string alpn;
  bool has_certificate = false;
  MachineId machine;               // from the certificate's URI name tidemark:machine:<hex>; nil for the server's
  std::string client;              // from tidemark:client:<name>, of a client of exports; else empty
  std::string certificate_serial;  // hex
  std::int64_t certificate_expires_us = 0;
  bool resumed = false;
};

class TlsStream {
 public:
  class Handler {
   public:
    virtual void on_handshake(const Peer& peer) = 0;
    // Where the next plaintext bytes go. Empty: reading pauses until resume_reading(); while it pauses nothing is
    // received either, not even the peer's farewell. Not every call is followed by on_read.
    virtual std::span<std::byte> read_space() = 0;
    // `size` bytes were put there. May call write(), pause (by an empty read_space next), close().
    virtual void on_read(std::size_t size) = 0;
    // The send queue is empty again after it had passed the high-water mark.
    virtual void on_writable() = 0;
    // Called once, last; the stream may be destroyed within. No error: the peer closed in order, or shutdown() is
    // done. A server refuses an agent's certificate only after the agent's on_handshake: its on_closed tells why.
    // Code::unauthenticated: certificate trouble, told in words (unknown authority, expired, not yet valid, no
    // certificate, wrong token's authority); unavailable, timed_out: the network.
    virtual void on_closed(const std::optional<Error>& error) = 0;

   protected:
    ~Handler() = default;
  };

  // Takes a connected socket. `server_name` is for the client's check of the server's certificate: it must carry the
  // DNS name or IP address, or the fixed name "tidemark-server", which every server certificate of ours has.
  TlsStream(asio::ip::tcp::socket socket, std::shared_ptr<TlsContext> context, ReceiveBuffer& buffer, Handler& handler);
  ~TlsStream();

  // Handshake, then reading. Without a handshake after limits::kHandshakeDeadlineSeconds: on_closed with timed_out.
  void start();
  // Encrypts and queues. Copies. Past `send_high_water` bytes queued the return is false: the caller should wait for
  // on_writable; the bytes are queued all the same, up to a hard limit, beyond which the stream closes with Code::busy.
  // Before on_handshake, after shutdown() and when the stream is closed nothing is queued and the return is false.
  // What is written within one handler call, or before the loop turns, goes out together.
  bool write(std::span<const std::byte> bytes);
  bool write(std::span<const std::byte> head, std::span<const std::byte> body);  // as one
  std::size_t queued() const;
  void set_send_limits(std::size_t high_water, std::size_t hard_limit);  // bytes; defaults below
  static constexpr std::size_t kSendHighWater = 512 << 10;
  static constexpr std::size_t kSendHardLimit = 4 << 20;
  void resume_reading();  // read_space() is asked again, from the loop, never within this call
  // Sends what is queued, then close_notify, then closes (within a bounded time); on_closed follows.
  void shutdown();
  void close();  // at once; no on_closed follows

  void rekey();  // changes the sending key; happens by itself long before a key is worn out

  const Peer& peer() const;  // complete from on_handshake on; the address is there from the start

  // Moves an established connection to another thread's io_context: detach on the old thread (also from within
  // on_handshake and on_read), attach on the new one. Bytes received and not yet read, and bytes queued for sending,
  // travel along. After detach() this stream is closed, without on_closed; only destroy it. Null when the stream is not
  // established any more (then on_closed tells why). A Detached that is never attached closes the connection.
  class Detached {
   public:
    ~Detached();

   private:
    friend class TlsStream;
    struct State;
    explicit Detached(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
  };
  std::unique_ptr<Detached> detach();
  // Goes on reading from the loop; start() is not called. `detached` is not null.
  TlsStream(std::unique_ptr<Detached> detached, asio::io_context& context, ReceiveBuffer& buffer, Handler& handler);

  struct Counters {  // on the socket
    std::uint64_t bytes_received = 0, bytes_sent = 0;
  };
  const Counters& counters() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tidemark::net
