// One NBD client: its socket, the handshake, and the requests it has under way. On a shard's thread.
//
// Input goes into a small buffer; the data of a write straight into the request's own. A request is begun when there is
// memory for its data (of this connection and of the server); until then nothing more is read from this client, and
// others are not held up. Requests are carried out on workers, in any order, and answered as they are done.
//
// Never destroyed inside a call of its stream: it goes to the shard's graveyard.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nbd/handshake.h"
#include "nbd/request.h"
#include "net/plain_stream.h"
#include "net/tls_stream.h"
#include "server/nbd_service.h"

namespace tidemark::server {

class NbdClients;

class NbdConnection final : public net::TlsStream::Handler {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::size_t kRequestsMax = 256;     // of one client, under way
  static constexpr std::uint64_t kMemoryMax = 64_MiB;  // of data of one client
  static constexpr auto kHandshakeMax = std::chrono::seconds(30);
  static constexpr auto kStallMax = std::chrono::seconds(30);  // in the midst of a request or of an answer

  NbdConnection(NbdClients& clients, std::uint64_t id, net::PlainStream::Socket socket, std::string peer, bool tcp,
                const NbdOrigin& origin, AdmissionCount::Ticket ticket);
  ~NbdConnection();

  void start();
  void tick(Time now);
  void retry();                // there may be memory now
  void end(const Error& why);  // closes it
  std::uint64_t id() const { return id_; }
  const NbdOrigin& origin() const { return origin_; }
  const std::string& certificate() const { return serial_; }  // that was shown; hex, or empty

  // What came of a request. Pieces of data lie in `data`.
  struct Answer {
    nbd::Request request;
    Status status;
    std::shared_ptr<NbdBuffer> data;
    std::vector<storage::ByteRange> pieces;  // of a read, relative to its begin; empty: all is data
    std::vector<nbd::StatusExtent> extents;  // of a block status
  };
  void answer(Answer answer);
  // Of a read that NbdReads made: as it was carried out, or to be carried out by a worker.
  void read_done(Answer answer, const std::vector<storage::ByteRange>& zeroes);
  void disk_took(std::chrono::steady_clock::duration time) { disk_took_ = time; }  // for such a read

 private:
  std::span<std::byte> read_space() override;
  void on_read(std::size_t size) override;
  void on_writable() override;
  void on_closed(const std::optional<Error>& error) override;
  void on_handshake(const net::Peer& peer) override;

  void process();
  bool handshake();     // false: it waits, or is over
  bool transmission();  // the same
  void start_tls();
  void found(Result<std::shared_ptr<NbdExport>> found);
  void listed(Result<std::vector<nbd::ListedExport>> names);
  bool begin(const nbd::Request& request);
  void carry_out(const nbd::Request& request, std::shared_ptr<NbdBuffer> data);
  void gather(Answer read);
  void hand_reads();
  void job_done();
  void refuse(const nbd::Request& request, nbd::Errno error, std::string_view why);
  void read_ahead(const nbd::Request& request);
  void send(std::string head, std::shared_ptr<NbdBuffer> owner = nullptr, std::span<const std::byte> body = {});
  void pump();
  void close_when_sent();
  void over(const std::optional<Error>& why);
  std::string client() const;
  std::span<std::byte> input() { return std::span(buffer_).subspan(begin_, end_ - begin_); }

  NbdClients& clients_;
  NbdService& service_;
  const std::uint64_t id_;
  const NbdOrigin origin_;
  const std::string peer_;
  const bool tcp_;
  AdmissionCount::Ticket ticket_;
  std::string identity_, serial_;  // of the certificate
  std::optional<Error> untrusted_;

  std::unique_ptr<net::PlainStream> plain_;
  std::unique_ptr<net::TlsStream> tls_;
  std::deque<std::tuple<std::string, std::shared_ptr<NbdBuffer>, std::span<const std::byte>>> out_;  // for TLS
  std::size_t out_bytes_ = 0;

  std::optional<nbd::Handshake> handshake_;
  std::shared_ptr<NbdExport> export_;
  bool structured_ = false, allocation_ = false;

  std::array<std::byte, 4096> buffer_;
  std::size_t begin_ = 0, end_ = 0;
  std::optional<nbd::Request> writing_;  // whose data is being received
  std::shared_ptr<NbdBuffer> payload_;
  std::size_t payload_filled_ = 0;
  std::uint64_t discard_ = 0;  // bytes of a write that was refused

  const std::shared_ptr<NbdMemory> memory_ = std::make_shared<NbdMemory>(kMemoryMax);
  std::size_t under_way_ = 0;
  bool waiting_ = false;  // in the handshake, for an answer
  bool wants_memory_ = false;
  bool starting_tls_ = false;
  bool disconnecting_ = false, closing_ = false, ended_ = false, processing_ = false, in_read_ = false;
  std::optional<Error> cause_;

  struct Reads;
  std::shared_ptr<Reads> reads_;  // begun; small ones are carried out together
  std::size_t jobs_ = 0;          // reads that workers have: batches

  std::uint64_t next_read_ = 0;  // where a sequential reader goes on
  std::uint64_t ahead_ = 0;      // read ahead up to here
  unsigned sequential_ = 0;
  std::optional<std::chrono::steady_clock::duration> disk_took_;  // the last time that the shard read itself
  std::uint64_t requests_ = 0, read_bytes_ = 0, written_bytes_ = 0;
  Time since_, received_, sent_;
  std::uint64_t sent_bytes_seen_ = 0;
};

}  // namespace tidemark::server
