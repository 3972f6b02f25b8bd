package demo;

import com.alipay.sofa.rpc.config.ConsumerConfig;
import java.io.IOException;

/** A SOFARPC consumer of Orders; see Load for what it calls and prints. System properties as for Consumer. */
public final class Shop {
    private Shop() {
    }

    public static void main(String[] args) throws IOException {
        ConsumerConfig<OrderService> config = Registry.consumer(OrderService.class);
        OrderService orders = config.refer();
        Load load = new Load(Registry::code);
        load.method("order", () -> orders.order("ACME", 7));
        load.run();
    }
}
