// TLS without sockets: an SSL object over a BIO that reads from a span of received bytes and writes to a queue of
// bytes to send. Whole records only are given to OpenSSL, so that it holds no buffer between records; what remains of
// the input is kept here, in a vector of exactly that size. Moves between threads as one object. Only for net/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "net/openssl.h"
#include "net/tls_context.h"
#include "net/tls_stream.h"

namespace tidemark::net {

// Bytes waiting for the socket. Memory is given back when it is empty.
class SendQueue {
 public:
  void append(std::span<const std::byte> bytes);
  std::span<const std::byte> front() const { return std::span(bytes_).subspan(sent_); }
  void pop(std::size_t size);
  std::size_t size() const { return bytes_.size() - sent_; }
  void clear();

 private:
  std::vector<std::byte> bytes_;
  std::size_t sent_ = 0;
};

class TlsCore {
 public:
  explicit TlsCore(std::shared_ptr<TlsContext> context);
  ~TlsCore();
  TlsCore(const TlsCore&) = delete;
  TlsCore& operator=(const TlsCore&) = delete;

  enum class Outcome : std::uint8_t { done, wants_input, closed_by_peer, failed };

  SSL* ssl() const { return ssl_.get(); }
  bool is_server() const { return context_->is_server(); }
  const TlsContext& context() const { return *context_; }

  Outcome handshake();
  // Decrypts one record or what is left of one.
  Outcome read(std::span<std::byte> space, std::size_t& size);
  bool readable() const { return SSL_pending(ssl_.get()) > 0 || whole_record() > 0; }
  // Encrypts into the queue. False: OpenSSL failed.
  bool write(std::span<const std::byte> bytes);
  void say_goodbye();  // queues close_notify
  bool rekey();        // queues a key update: what is sent after it has a new key

  // The input: first what was kept, then what came. offer() must be followed by keep_rest() before the span ends.
  std::span<const std::byte> kept() const { return std::span(kept_).subspan(kept_at_); }
  void take_kept(std::span<std::byte> to);  // moves it out; `to` has its size
  void offer(std::span<const std::byte> input) {
    input_ = input;
    input_is_kept_ = false;
  }
  void offer_kept();
  void keep_rest();
  // True when the input cannot be the start of a TLS record.
  bool input_is_foreign() const;

  SendQueue queue;

 private:
  friend struct CoreBio;
  // Size of the complete record at the start of the input, or 0.
  std::size_t whole_record() const;
  Outcome outcome_of(int result);

  std::shared_ptr<TlsContext> context_;
  SslPtr ssl_;
  std::span<const std::byte> input_;
  std::vector<std::byte> kept_;
  std::size_t kept_at_ = 0;
  std::size_t record_left_ = 0;  // bytes of the current whole record that OpenSSL has not fetched yet
  std::uint64_t records_since_rekey_ = 0;
  bool input_is_kept_ = false;
};

}  // namespace tidemark::net
