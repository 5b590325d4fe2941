// Writing to a clone over NBD, against a plain array: any place and length, zeroes and trims, flushes, several
// connections, and a server that is started again.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "nbd/protocol.h"
#include "server_fixture.h"

namespace tidemark::server {
namespace {

using nbd::Command;

// A connection, past the greeting.
class NbdSocket {
 public:
  explicit NbdSocket(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    EXPECT_LT(path.size(), sizeof address.sun_path);
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << path;
    take(18);
    std::string flags;
    nbd::put_big<std::uint32_t>(flags, nbd::kFixedNewstyle | nbd::kNoZeroes);
    send(flags);
  }
  ~NbdSocket() { ::close(fd_); }
  NbdSocket(const NbdSocket&) = delete;
  NbdSocket& operator=(const NbdSocket&) = delete;

  void send(const std::string& bytes) {
    ASSERT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  std::vector<std::byte> take(std::size_t size) {
    std::vector<std::byte> bytes(size);
    if (size != 0) {
      EXPECT_EQ(::recv(fd_, bytes.data(), size, MSG_WAITALL), static_cast<ssize_t>(size));
    }
    return bytes;
  }
  void send_option(nbd::Option option, const std::string& data) {
    std::string bytes;
    nbd::put_big<std::uint64_t>(bytes, nbd::kOptionMagic);
    nbd::put_big<std::uint32_t>(bytes, static_cast<std::uint32_t>(option));
    nbd::put_big<std::uint32_t>(bytes, static_cast<std::uint32_t>(data.size()));
    send(bytes + data);
  }
  void send_request(Command command, std::uint64_t offset, std::uint32_t length, std::uint16_t flags,
                    const std::vector<std::byte>& data = {}) {
    std::string request;
    nbd::put_big<std::uint32_t>(request, nbd::kRequestMagic);
    nbd::put_big<std::uint16_t>(request, flags);
    nbd::put_big<std::uint16_t>(request, static_cast<std::uint16_t>(command));
    nbd::put_big<std::uint64_t>(request, 1);
    nbd::put_big<std::uint64_t>(request, offset);
    nbd::put_big<std::uint32_t>(request, length);
    request.append(reinterpret_cast<const char*>(data.data()), data.size());
    send(request);
  }

 private:
  const int fd_;
};

// As simple as a client can be: one request at a time, simple replies.
class NbdClient {
 public:
  NbdClient(const std::string& path, const std::string& name) : socket_(path) {
    socket_.send_option(nbd::Option::export_name, name);
    size_ = nbd::get_big<std::uint64_t>(socket_.take(10).data());
  }

  std::uint64_t size() const { return size_; }
  std::uint32_t ask(Command command, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0,
                    const std::vector<std::byte>& data = {}) {
    socket_.send_request(command, offset, length, flags, data);
    return nbd::get_big<std::uint32_t>(socket_.take(16).data() + 4);
  }
  std::vector<std::byte> read(std::uint64_t offset, std::uint32_t length) {
    const auto error = ask(Command::read, offset, length);
    EXPECT_EQ(error, 0u);
    return error == 0 ? socket_.take(length) : std::vector<std::byte>();
  }

 private:
  NbdSocket socket_;
  std::uint64_t size_ = 0;
};

// Asks what is zero; for this there are structured replies.
class NbdMapper {
 public:
  NbdMapper(const std::string& path, const std::string& name) : socket_(path) {
    option(nbd::Option::structured_reply, {});
    std::string context = text(name);
    nbd::put_big<std::uint32_t>(context, 1);
    option(nbd::Option::set_meta_context, context + text(nbd::kAllocation));
    std::string go = text(name);
    nbd::put_big<std::uint16_t>(go, 0);
    option(nbd::Option::go, go);
  }
  // Where the first range of zeroes from `offset` on begins; `end` if there is none.
  std::uint64_t first_zero(std::uint64_t offset, std::uint64_t end) {
    while (offset < end) {
      socket_.send_request(Command::block_status, offset, static_cast<std::uint32_t>(end - offset), 0);
      const auto header = socket_.take(20);
      EXPECT_EQ(nbd::get_big<std::uint16_t>(header.data() + 6), static_cast<std::uint16_t>(nbd::Chunk::block_status));
      const auto ranges = socket_.take(nbd::get_big<std::uint32_t>(header.data() + 16));
      if (ranges.size() < 12) return offset;
      for (std::size_t at = 4; at + 8 <= ranges.size() && offset < end; at += 8) {
        if ((nbd::get_big<std::uint32_t>(&ranges[at + 4]) & nbd::kZero) != 0) return offset;
        offset += nbd::get_big<std::uint32_t>(&ranges[at]);
      }
    }
    return end;
  }

 private:
  static std::string text(const std::string& what) {
    std::string bytes;
    nbd::put_big<std::uint32_t>(bytes, static_cast<std::uint32_t>(what.size()));
    return bytes + what;
  }
  void option(nbd::Option option, const std::string& data) {
    socket_.send_option(option, data);
    for (;;) {
      const auto header = socket_.take(20);
      const auto type = nbd::get_big<std::uint32_t>(header.data() + 12);
      socket_.take(nbd::get_big<std::uint32_t>(header.data() + 16));
      ASSERT_LT(type, 0x80000000u);
      if (type == static_cast<std::uint32_t>(nbd::OptionReply::ack)) return;
    }
  }
  NbdSocket socket_;
};

class NbdCloneTest : public ServerTest {
 protected:
  static constexpr std::uint64_t kSize = 700 * 1024 + 512;  // its last granule is short

  void SetUp() override {
    start();
    auto agent = connect(enrolled());
    ASSERT_TRUE(agent->welcomed());
    point_.resize(kSize);
    Random(1).fill(point_);
    content_ = point_;
    std::vector<std::byte> sent = point_;
    sent.resize(round_up(kSize, limits::kGranuleSize));  // as agents do
    const auto disk = agent->open_disk("vda", kSize);
    agent->begin(agent->session.next_epoch().value(), pb::INITIAL);
    agent->send(disk, 0, sent);
    ASSERT_TRUE(agent->commit());
    const auto made = admin("POST", "/v1/machines/web1/clones", R"({"at": "latest", "name": "check"})");
    ASSERT_EQ(made.status, 200) << made.body;
  }
  std::unique_ptr<NbdClient> open(const std::string& name = "clone/check/vda") {
    return std::make_unique<NbdClient>(data + "/nbd.sock", name);
  }
  // A change somewhere, here and there.
  void change(NbdClient& client, Random& random) {
    const std::uint64_t offset = random.below(kSize);
    const auto length = static_cast<std::uint32_t>(
        1 + random.below(std::min<std::uint64_t>(kSize - offset, std::uint64_t{1} << random.below(18))));
    const auto at = content_.begin() + static_cast<std::ptrdiff_t>(offset);
    const std::uint16_t flags = random.chance(0.1) ? nbd::kFua : 0;
    if (random.chance(0.2)) {
      ASSERT_EQ(client.ask(Command::write_zeroes, offset, length, flags), 0u);
      std::fill(at, at + length, std::byte{0});
    } else {
      std::vector<std::byte> bytes(length);
      random.fill(bytes);
      if (random.chance(0.1)) std::fill(bytes.begin(), bytes.end(), std::byte{0});
      ASSERT_EQ(client.ask(Command::write, offset, length, flags, bytes), 0u);
      std::copy(bytes.begin(), bytes.end(), at);
    }
  }
  void expect_content(NbdClient& client) { ASSERT_TRUE(client.read(0, kSize) == content_); }

  std::vector<std::byte> point_, content_;
};

TEST_F(NbdCloneTest, WhatIsWrittenAnywhereIsReadOnAnyConnection) {
  Random random(5);
  std::array clients{open(), open(), open()};
  EXPECT_EQ(clients[0]->size(), kSize);
  expect_content(*clients[0]);
  for (int step = 0; step < 400; ++step) {
    change(*clients[random.below(clients.size())], random);
    const std::uint64_t offset = random.below(kSize);
    const auto length = static_cast<std::uint32_t>(1 + random.below(std::min<std::uint64_t>(kSize - offset, 9000)));
    ASSERT_TRUE(std::ranges::equal(clients[random.below(clients.size())]->read(offset, length),
                                   std::span(content_).subspan(offset, length)))
        << "step " << step;
    if (random.chance(0.05)) {
      ASSERT_EQ(clients[0]->ask(Command::flush, 0, 0), 0u);
    }
  }
  for (auto& client : clients) expect_content(*client);
  ASSERT_TRUE(open("web1/vda@latest")->read(0, kSize) == point_) << "the point is what it was";
}

TEST_F(NbdCloneTest, WhatWasFlushedIsThereWhenTheServerIsStartedAgain) {
  Random random(6);
  for (int life = 0; life < 4; ++life) {
    {
      auto client = open();
      expect_content(*client);
      for (int step = 0; step < 40; ++step) change(*client, random);
      ASSERT_EQ(client->ask(Command::flush, 0, 0), 0u);
    }
    restart();
  }
  expect_content(*open());
}

TEST_F(NbdCloneTest, ATrimmedRangeIsZeroInWholeGranulesAndTheRestStays) {
  auto client = open();
  ASSERT_EQ(client->ask(Command::trim, 5000, 20'000), 0u);
  std::fill(content_.begin() + 8192, content_.begin() + 24'576, std::byte{0});
  expect_content(*client);
  ASSERT_EQ(client->ask(Command::trim, kSize - 600, 600), 0u);  // the end of the disk ends a granule
  std::fill(content_.end() - 512, content_.end(), std::byte{0});
  expect_content(*client);
}

// While what was written becomes durable and moves from memory to the index, a map may show it from either, and from
// one of them it must.
TEST_F(NbdCloneTest, AMapNeverCallsZeroWhatWasWrittenBefore) {
  auto client = open();
  NbdMapper mapper(data + "/nbd.sock", "clone/check/vda");
  constexpr std::uint64_t kGranules = kSize / limits::kGranuleSize;
  std::vector<std::byte> bytes(limits::kGranuleSize);
  Random(9).fill(bytes);
  std::atomic<std::uint64_t> written = 0;
  std::atomic<bool> failed = false;
  std::uint64_t maps = 0;
  for (int round = 0; round < 40; ++round) {
    written = 0;
    ASSERT_EQ(client->ask(Command::write_zeroes, 0, kGranules * limits::kGranuleSize, nbd::kFua), 0u);
    const std::jthread writer([&] {
      for (std::uint64_t granule = 0; granule < kGranules; ++granule) {
        const std::uint16_t flags = granule % 8 == 7 ? nbd::kFua : 0;
        if (client->ask(Command::write, granule * limits::kGranuleSize, limits::kGranuleSize, flags, bytes) != 0)
          failed = true;
        ++written;
      }
    });
    for (std::uint64_t before = 0; before < kGranules; ++maps) {
      before = written;
      if (before == 0) std::this_thread::yield();
      ASSERT_GE(mapper.first_zero(0, before * limits::kGranuleSize), before * limits::kGranuleSize)
          << "round " << round << ", " << before << " granules were written, map " << maps;
    }
    ASSERT_FALSE(failed);
  }
}

TEST_F(NbdCloneTest, WhatCannotBeDoneIsRefusedAndChangesNothing) {
  auto client = open();
  EXPECT_EQ(client->ask(Command::write, kSize - 10, 100, 0, std::vector<std::byte>(100)), 28u);
  EXPECT_EQ(client->ask(Command::read, kSize, 1), 22u);
  EXPECT_EQ(client->ask(Command::write, 0, 0), 0u);
  expect_content(*client);
  auto point = open("web1/vda@latest");
  EXPECT_EQ(point->ask(Command::write, 0, 512, 0, std::vector<std::byte>(512)), 1u);
  EXPECT_EQ(point->ask(Command::trim, 0, 4096), 1u);
  ASSERT_TRUE(point->read(0, kSize) == point_);
}

}  // namespace
}  // namespace tidemark::server
